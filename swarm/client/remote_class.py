"""Makes a Hugging Face model one whose blocks are remote.

The class is made for it: `RemoteGeneration`, or the like, comes before the model's own class.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swarm.client import contract, forward_options
from swarm.client.backend import Backend
from swarm.client.blocks import RemoteBlocks
from swarm.client.forward import NO_GRAPH
from swarm.client.hidden_states import remember_output
from swarm.client.remote import Remote
from swarm.models.checkpoint import Checkpoint
from swarm.models.stand_in import replace_blocks


def remote_class(base: type, *mixins: type) -> type:
    """A class of the same name as `base` (transformers looks at names) whose methods have the same signatures (and at those)."""
    own = base.forward  # type: ignore[attr-defined]
    signature = inspect.signature(own)
    names = [one.name for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD][1:]

    def outside_graphs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._remote_forward(own, names, forward_options.bound(names, args, kwargs))

    forward: Any = torch.compiler.disable(outside_graphs, reason=NO_GRAPH)
    prepare = base.prepare_inputs_for_generation  # type: ignore[attr-defined]

    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return prepare(self, input_ids, *args, **self._only_new(input_ids, kwargs))

    forward.__signature__ = signature
    prepare_inputs_for_generation.__signature__ = inspect.signature(prepare)  # type: ignore[attr-defined]
    ours = {"forward": forward, "prepare_inputs_for_generation": prepare_inputs_for_generation}
    body = {**ours, "__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (*mixins, base), body)


def become_remote(
    model: Any, mixins: tuple[type, ...], checkpoint: Checkpoint, backend: Backend, num_blocks: int, vocab_size: int
) -> None:
    """Give a model the class whose forward and `generate` are ours, and what its checkpoint says about generating."""
    base = next(cls for cls in type(model).__mro__ if "forward" in cls.__dict__)
    model.__class__ = remote_class(type(model), *mixins)
    model.remote = Remote(
        backend=backend,
        num_blocks=num_blocks,
        vocab_size=vocab_size,
        max_positions=checkpoint.max_positions,
        cache_key=cache_key(base),
        path=checkpoint.path,
    )
    model.generation_config = contract.read_settings(checkpoint.path)
    model.name_or_path = model.config._name_or_path = str(checkpoint.path)
    model.__dict__["swarm_finalizer"] = weakref.finalize(model, backend.close)


def cache_key(base: type) -> str | None:
    parameters = inspect.signature(base.forward).parameters  # type: ignore[attr-defined]
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def attach(model: nn.Module, blocks: RemoteBlocks, owner: nn.Module, attribute: str) -> None:
    """Put `blocks` where the layer list was, and keep the last hidden state within reach."""
    said = copy.copy(model.config)
    replace_blocks(model, blocks, owner, attribute)
    # what the checkpoint asks for is answered, or refused, by every forward
    for name in ("output_hidden_states", "_output_attentions"):
        model.config.__dict__[name] = getattr(said, name, False)
    remember_output(owner if isinstance(owner, PreTrainedModel) else model.get_decoder())  # type: ignore[operator]
