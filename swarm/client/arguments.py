"""Arguments of other libraries' `from_pretrained`.

Taken by our name, ignored if they ask for what happens anyway, or refused.

transformers and Petals users bring them along. What is refused says in one line what to use here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from protocols.errors import BadRequestError, shown

_HERE = "only embedding and head are on this machine, on one device: pass device="
_WEIGHTS = (
    "config and weights are those that the swarm serves (NAME@DIGEST chooses); "
    "to use others, save them as a checkpoint and host it: swarm node DIRECTORY"
)
_PLACE = "write NAME@DIGEST to choose among weights that the swarm serves, or download what you want and give its directory"
_PRECISION = "each node stores its blocks' weights as it chooses; leave it out, and pass dtype= for the compute dtype"
_NODES = "blocks run at the nodes, which decide how; leave it out"
_CALL = "pass it to the call, model(...) or model.generate(...), or set it on model.generation_config"
_PATIENCE = "pass patience_s=, the seconds that a call waits for nodes; retries and timeouts follow from it"
_ROUTE = "routes are found and repaired without it; leave it out"
_TRAINING = "the swarm serves inference; leave it out"

SAME: Mapping[str, str] = {"torch_dtype": "dtype", "initial_peers": "peers", "device_map": "device"}
"""Another library's name -> ours, if it was given a value that ours can take."""

NO_MATTER = frozenset(["low_cpu_mem_usage", "resume_download", "weights_only", "_fast_init"])
"""Asked for or not: nothing here depends on it."""

ANYWAY: Mapping[str, tuple[object, ...]] = {
    "use_safetensors": (None, True),
    "token": (None, True),
    "use_auth_token": (None, True),
    "revision": (None, "main"),
    "use_cache": (None, True),
    "return_dict": (None, True),
    **dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), (None,)),  # 0 is a token
}
"""Values of refused arguments that ask for what happens anyway; if an argument is not named here, None and False do."""

_GROUPS: tuple[tuple[str, str], ...] = (
    ("load_in_4bit load_in_8bit quantization_config gguf_file", _PRECISION),
    ("trust_remote_code", "code in a checkpoint is never run; leave it out: architectures that transformers knows need none"),
    ("attn_implementation use_flash_attention_2 experts_implementation use_kernels kernel_config", _NODES),
    ("revision code_revision variant subfolder use_safetensors from_tf from_flax", _PLACE),
    ("token use_auth_token", "run `hf auth login`, or set HF_TOKEN; it is used only if a model comes from the Hugging Face Hub"),
    ("proxies", "set HTTPS_PROXY in the environment"),
    ("local_files_only", "give the model's directory, or set HF_HUB_OFFLINE=1; a name is looked up in the swarm first"),
    (
        "force_download",
        "what was fetched is verified against the model's digest; to fetch it anew, remove it: swarm cache prune NAME",
    ),
    ("mirror", "set HF_ENDPOINT in the environment"),
    ("config state_dict key_mapping ignore_mismatched_sizes adapter_kwargs", _WEIGHTS),
    ("generation_config use_cache output_attentions output_hidden_states return_dict", _CALL),
    ("pad_token_id eos_token_id bos_token_id", _CALL),
    ("output_loading_info", "only the model is returned; leave it out"),
    ("max_memory offload_folder offload_state_dict offload_buffers tp_plan tp_size device_mesh distributed_config", _HERE),
    ("dht_prefix", "pass model_name=, the model's name in the swarm"),
    ("request_timeout session_timeout connect_timeout max_retries min_backoff max_backoff", _PATIENCE),
    ("allowed_servers blocked_servers use_server_to_server daemon_startup_timeout", _ROUTE),
    ("update_period ban_timeout show_route ping_n_servers max_pinged dht identity_path", _ROUTE),
    ("active_adapter tuning_mode pre_seq_len", _TRAINING),
)
REFUSED: Mapping[str, str] = {name: reason for names, reason in _GROUPS for name in names.split()}
"""Argument -> what to use instead."""


def settled(given: Mapping[str, Any], others: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """`given`, with what `others` say in another library's words put in; BadRequestError names the first that cannot be taken.

    given: those arguments of `function` that other libraries call otherwise.
    """
    parameters = inspect.signature(function).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD}
    result = dict(given)
    for name, value in others.items():
        if name in SAME:
            ours = SAME[name]
            value = _device_of(value) if name == "device_map" else value
            if given[ours] not in (defaults[ours], None, value):
                raise BadRequestError(f"{name} is another name of {ours}, and both were given; leave {name} out")
            result[ours] = defaults[ours] if value is None else value
        elif name in REFUSED:
            if not any(type(value) is type(one) and value == one for one in ANYWAY.get(name, (None, False))):
                raise BadRequestError(f"from_pretrained takes no {name} here: {REFUSED[name]}")
        elif name not in NO_MATTER:
            raise BadRequestError(f"from_pretrained knows no argument {name!r}{_nearest(name, [*defaults, *SAME])}")
    return result


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(sorted(set(names) - set(SAME)))}"


def _device_of(device_map: object) -> object:
    """A device map as the one device of embedding and head."""
    if isinstance(device_map, dict) and len(set(device_map.values())) == 1:
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else str(accelerator)
    if isinstance(device_map, dict):
        raise BadRequestError(f"device_map is {shown(device_map)}, but {_HERE}")
    return device_map


def model_of(value: object) -> str | Path:
    """A model's name, or its directory."""
    if (isinstance(value, str) and value.strip()) or isinstance(value, Path):
        return value
    raise BadRequestError(f"model is a directory, a name that the swarm serves, or a Hub name, got {shown(value)}")


def peers_of(value: object) -> tuple[str, ...]:
    """Addresses, from one string (several are separated by spaces or commas) or several; a multiaddr object is its text."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise BadRequestError(f"peers is an address that `swarm node` printed, or a list of such, got {shown(value)}")
    return tuple(str(address) for address in value)


def device_of(value: object) -> torch.device:
    """A device that can be used on this machine."""
    try:
        device = torch.device(cast("str", value))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # what torch raises for a name, or a device, that is not there
        reason = " ".join(str(error).split())[:200]
        raise BadRequestError(
            f"device {value!r} cannot be used here ({reason}); leave it out for cpu, or name another"
        ) from error
    if device.type == "meta":
        raise BadRequestError("embedding and head cannot compute on the meta device; leave device out for cpu, or name another")
    return device
