"""Methods that a model in a swarm refuses, with alternatives.

A model here holds embedding and head, a thin one nothing. transformers and torch would take that for the whole model: save it, convert
it, train it. What is in the table below is refused with one line; what can be right is in `holdings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from protocols.errors import BadRequestError

Class = TypeVar("Class", bound=type)

_PARTS = (
    "the weights of the blocks are at the nodes, and only a whole model can be saved; "
    "load the checkpoint with transformers' AutoModelForCausalLM for that"
)
_GIVEN = "the weights are those that the swarm serves; to use others, save them as a checkpoint and host it: swarm node DIRECTORY"
_TRAINING = (
    "the blocks at the nodes are frozen; train the whole model in the swarm (swarm train), or what is here: embedding and head "
    "(requires_grad_), soft prompts (inputs_embeds)"
)
_AT_NODES = "blocks run at the nodes, which decide how; leave it out"
_BATCHING = "it batches on this machine, the swarm batches by itself; call generate for each prompt, from threads if you like"

REFUSED: Mapping[str, str] = {
    "save_pretrained": _PARTS,
    "save_distributed_checkpoint": _PARTS,
    "push_to_hub": _PARTS,
    "state_dict": _PARTS,
    "load_state_dict": _GIVEN,
    "init_weights": _GIVEN,
    "initialize_weights": _GIVEN,
    "to_empty": _GIVEN,
    "add_adapter": _TRAINING,
    "load_adapter": _TRAINING,
    "enable_peft_hotswap": _TRAINING,
    "enable_input_require_grads": _TRAINING,
    "gradient_checkpointing_enable": _TRAINING,
    "activation_checkpointing_enable": _TRAINING,
    "set_attn_implementation": _AT_NODES,
    "set_use_kernels": _AT_NODES,
    "resize_position_embeddings": _AT_NODES,
    "set_decoder": _AT_NODES,
    "set_encoder": _AT_NODES,
    "generate_batch": _BATCHING,
    "init_continuous_batching": _BATCHING,
    "continuous_batching_context_manager": _BATCHING,
    "share_memory": "another process needs a model of its own; call from_pretrained there",
}
"""Method -> why not, and the next step. For full and thin models."""

_NOTHING_HERE = "a thin model holds no weights, so there is nothing to work on; load it without thin=True for embedding and head"

REFUSED_IF_THIN: Mapping[str, str] = dict.fromkeys(
    (
        *("get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings"),
        "resize_token_embeddings",
    ),
    _NOTHING_HERE,
)
"""The same for what only a full model can do."""

NO_COPY = (
    "a model in a swarm cannot be copied or pickled, because it holds open connections; "
    "use this one from several threads, or call from_pretrained again (in each process)"
)
NO_TRAIN_MODE = (
    "dropout is off at the nodes, and so it is here; leave train() out: gradients come in eval mode, too, if requires_grad_ or "
    "inputs_embeds ask for them"
)
NOTHING_TO_TRAIN = f"requires_grad_ does not work on a thin model: {_NOTHING_HERE}"
INNER = "the inner model cannot be called by itself; call the model"


def refuses(table: Mapping[str, str]) -> Callable[[Class], Class]:
    """A class with a refusing method for every entry of a table."""

    def with_refusals(cls: Class) -> Class:
        for name, reason in table.items():
            setattr(cls, name, _method(name, reason))
        return cls

    return with_refusals


def _method(name: str, reason: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise BadRequestError(f"{name} does not work on a model in a swarm: {reason}")

    method.__name__ = name
    method.__doc__ = f"Refused: {reason}."
    return method


def refuse_calls(modules: Iterable[Any], next_step: str) -> None:
    """Refuse a call of any of these modules: each is a part of a model that works only as a whole."""

    def refuse(module: Any, args: Any) -> NoReturn:
        raise BadRequestError(f"{INNER}{next_step}")

    for module in modules:
        module.register_forward_pre_hook(refuse)
