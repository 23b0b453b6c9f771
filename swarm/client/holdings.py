"""Which weights of a model are on this machine.

Where they are, their dtype, their number.

Methods of torch and transformers that can be right for a model whose blocks are elsewhere; those that cannot are in `refusals.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from protocols.errors import BadRequestError
from swarm.client.refusals import NO_COPY, NO_TRAIN_MODE, NOTHING_TO_TRAIN, REFUSED, refuses
from swarm.client.remote import Remote
from swarm.models.skeleton import whole_model


@refuses(REFUSED)
class Holdings:
    """Comes before the model's own class, by way of `RemoteForward`."""

    remote: Remote

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise BadRequestError("a model in a swarm is not made from a config; call SwarmModelForCausalLM.from_pretrained(MODEL)")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Behind `to`, `half`, `float`, `cuda`, `cpu`, …, also those of a module that holds this one: moves, never converts.

        Embedding and head in another dtype than the blocks' would give other tokens than the model does in either dtype.
        """
        dtype = self.remote.backend.dtype
        probe = fn(torch.empty(0, dtype=dtype, device=self.device))  # type: ignore[attr-defined]
        if probe.dtype is not dtype:
            wanted, has = (str(one).removeprefix("torch.") for one in (probe.dtype, dtype))
            raise BadRequestError(
                f"this model computes in {has}, here and at the nodes, and cannot be converted to {wanted}; load it with dtype= "
                "(float32, bfloat16 or float16), if nodes serve that"
            )
        if probe.device.type == "meta":
            raise BadRequestError("a model on the meta device cannot compute; move it to cpu or an accelerator")
        return super()._apply(lambda tensor: tensor.to(probe.device), recurse)  # type: ignore[misc]

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise BadRequestError(NO_TRAIN_MODE)
        return super().train(False)  # type: ignore[misc]

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Of what is here, embedding, norms and head; the blocks stay frozen at their nodes."""
        if requires_grad and next(self.parameters(), None) is None:  # type: ignore[attr-defined]
            raise BadRequestError(NOTHING_TO_TRAIN)
        return super().requires_grad_(requires_grad)  # type: ignore[misc]

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Of the whole model, blocks included, as transformers counts. only_trainable: those here that require a gradient.

        (`parameters()` and `get_memory_footprint()` are about what this machine holds.)
        """
        if only_trainable:
            return sum(one.numel() for one in self.parameters() if one.requires_grad)  # type: ignore[attr-defined]
        number: int = whole_model(self.config).num_parameters(exclude_embeddings=exclude_embeddings)  # type: ignore[attr-defined]
        return number

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Also behind `resize_token_embeddings`: from here on, ids up to the new table's end are taken."""
        super().set_input_embeddings(value)  # type: ignore[misc]
        self.remote = replace(self.remote, vocab_size=self.get_input_embeddings().weight.shape[0])  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise BadRequestError(NO_COPY)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise BadRequestError(NO_COPY)
