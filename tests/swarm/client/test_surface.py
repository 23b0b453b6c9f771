"""The Python surface: what programs import and call, frozen.

Adding a name is a decision; removing or renaming one breaks a user's program.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields

import swarm
from swarm.client import SwarmModelForCausalLM
from swarm.client.cache import RemoteCache
from swarm.client.refusals import REFUSED, REFUSED_IF_THIN
from swarm.client.remote_span import RemoteSpan, SpanSession
from swarm.client.stream import StreamedToken
from swarm.thin.generation import generate
from swarm.thin.model import ThinModel, open_model

PACKAGES = {
    "swarm.client": "SwarmModelForCausalLM",
    "swarm.rpc": "Call ChannelPool Handler Handlers PeerChannel RpcServer Stream StreamHandler TlsCertificate UnaryHandler",
}
"""Package of swarm/ -> what it exports; the others export nothing by themselves."""

MODEL = {
    "blocks": "",
    "close": "()",
    "embed": "(texts)",
    "from_pretrained": (
        "(model, *, peers=(), swarm='public', dtype='auto', device='cpu', patience_s=60.0, priority=0, model_name=None, cache_dir=None, "
        "find=None, thin=None, join=None, allow=None, deny=None, trust=None, identity=None, accept_new_weights=False, follow=False, "
        "on_wait=None, **others)"
    ),
    "generate": "(inputs=None, *args, **kwargs)",
    "new_cache": "()",
    "num_parameters": "(only_trainable=False, exclude_embeddings=False)",
    "requires_grad_": "(requires_grad=True)",
    "stream": "(prompt, *, max_new_tokens=256, temperature=0.0, top_k=0, top_p=1.0, seed=None, **options)",
    "tokenizer": "",
    "tokenizer_if_any": "()",
    "train": "(mode=True)",
    "version": "",
}
"""What `SwarmModelForCausalLM` adds to a transformers model -> the arguments."""

OTHERS = {
    "RemoteSpan.check": "(hidden, past)",
    "RemoteSpan.open": "()",
    "RemoteSpan.session": "()",
    "SpanSession.close": "()",
    "SpanSession.crop": "(tokens)",
    "SpanSession.fork": "()",
    "SpanSession.journey": "",
    "SpanSession.position": "",
    "SpanSession.step": "(hidden)",
    "RemoteCache.batch_repeat_interleave": "(repeats)",
    "RemoteCache.batch_select_indices": "(indices)",
    "RemoteCache.batch_size": "",
    "RemoteCache.check_model": "(model)",
    "RemoteCache.close": "()",
    "RemoteCache.crop": "(tokens_to_remove)",
    "RemoteCache.fork": "()",
    "RemoteCache.get_mask_sizes": "(query_length, layer_idx=0)",
    "RemoteCache.get_max_length": "(layer_idx=None)",
    "RemoteCache.get_query_offset": "(layer_idx=0)",
    "RemoteCache.get_seq_length": "(layer_idx=0)",
    "RemoteCache.has_previous_state": "(layer_idx=None, state_idx=None)",
    "RemoteCache.is_compileable": "",
    "RemoteCache.journey": "",
    "RemoteCache.reorder_cache": "(beam_idx)",
    "RemoteCache.reset": "()",
    "RemoteCache.skip": "(size, columns)",
    "RemoteCache.step": "(request, columns)",
    "RemoteCache.update": "(*args, **kwargs)",
    "RemoteCache.versions": "",
    "ThinModel.begin": "(prompt, owner='')",
    "ThinModel.close": "()",
    "ThinModel.compute_once": "(prompt, owner='')",
    "ThinModel.embed": "(ids)",
    "ThinModel.end": "(sequence, keep_for=None)",
    "ThinModel.limits": "(max_new_tokens)",
    "ThinModel.num_replaced": "(sequence)",
    "ThinModel.sessions": "",
    "ThinModel.start": "()",
    "open_model": (
        "(name, *, peers, root, swarm='public', dtype='auto', route_timeout_s=60.0, priority=0, find=…, waits=None, entry=…, "
        "accept_new_weights=False, follow=False)"
    ),
    "generate": "(sequence, prompt, chooser, limits, propose=None, constraint=None)",
}
"""What its methods return, and what a thin client calls -> the arguments."""

TOKEN = ["id", "text", "finish", "version"]


def arguments(value: object) -> str:
    """`(a, b=1, *, c=2)`: names, order and defaults, without types; "" for a property."""
    call = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if not callable(call):
        return ""
    plain = [
        one.replace(annotation=inspect.Parameter.empty, default=_shown(one.default))
        for one in inspect.signature(call).parameters.values()
        if one.name not in ("self", "cls")
    ]
    return str(inspect.Signature(plain))


class _Other:
    """A default that is no plain value."""

    def __repr__(self) -> str:
        return "…"


def _shown(default: object) -> object:
    is_plain = default is inspect.Parameter.empty or default is None or isinstance(default, str | int | float | tuple)
    return default if is_plain else _Other()


def own_names(kind: type) -> dict[str, str]:
    """Public names that our classes define -> their arguments; methods that only refuse are left out."""
    names = {
        name for one in kind.__mro__ if one.__module__.startswith("swarm.") for name in vars(one) if not name.startswith("_")
    }
    return {name: arguments(inspect.getattr_static(kind, name)) for name in sorted(names - {*REFUSED, *REFUSED_IF_THIN})}


def test_packages_export_what_they_did() -> None:
    found = {}
    for module in pkgutil.iter_modules(swarm.__path__, "swarm."):
        if module.ispkg and (exported := getattr(importlib.import_module(module.name), "__all__", None)):
            found[module.name] = " ".join(sorted(exported))
    assert found == PACKAGES


def test_a_model_has_the_methods_and_arguments_that_it_had() -> None:
    assert own_names(SwarmModelForCausalLM) == MODEL


def test_so_have_spans_caches_and_the_thin_model() -> None:
    kinds = {
        f"{kind.__name__}.{name}": given
        for kind in (RemoteSpan, SpanSession, RemoteCache, ThinModel)
        for name, given in own_names(kind).items()
    }
    assert kinds | {"open_model": arguments(open_model), "generate": arguments(generate)} == OTHERS
    assert [one.name for one in fields(StreamedToken)] == TOKEN
