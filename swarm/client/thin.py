"""A Hugging Face model without weights, for thin clients.

Its forward sends token ids and gets logits, because nodes run the embedding and the head.

`generate`, its processors, beams, speculation and streams are transformers', as in the full client; so are our checks, sessions and
cache (`generation.py`, `forward.py`, `blocks.py`). Only what happened inside of the model's own forward is somewhere else.

Shapes: B sequences, q new columns, E width of embeddings, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from protocols.errors import BadRequestError
from protocols.words import counted
from swarm.client.backend import EMBEDS, IDS, Backend
from swarm.client.blocks import StepPlan, carry
from swarm.client.forward_options import LOSS
from swarm.client.generation import RemoteGeneration
from swarm.client.refusals import REFUSED_IF_THIN, refuse_calls, refuses
from swarm.client.remote_class import become_remote
from swarm.models.checkpoint import Checkpoint
from swarm.models.skeleton import meta_model

_SHAPES_ONLY = frozenset(
    [
        *("cache_position", "position_ids", "attention_mask", "use_cache", "past_key_values", "cache_params"),
        *("is_first_iteration", "next_sequence_length"),
        *("output_hidden_states", "output_attentions", "output_router_logits"),  # False: what was asked for is in the plan
    ]
)
"""Arguments of a forward that have been read already, or say nothing beyond what has."""

_POSITIONS = re.compile("pos|wpe")
"""Names of embeddings of positions: `wpe`, `embed_positions`, `position_embeddings`, …"""


@dataclass
class ThinOutput(ModelOutput):  # type: ignore[misc]
    """What a forward returns; what is None is left out, as in transformers' own outputs."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    cache_params: Any = None


@refuses(REFUSED_IF_THIN)
class ThinGeneration(RemoteGeneration):
    """Comes before the model's own class, in place of RemoteGeneration."""

    def _answered(self, own: Callable[..., Any], step: StepPlan, kwargs: dict[str, Any], wants_hidden: bool) -> Any:
        """One step of ids or embeddings, and the logits that it wants: [B, kept columns, V] float32, zeros at padding."""
        if wants_hidden:
            raise BadRequestError(
                "hidden states are not here: a thin model gets logits only; ask without output_hidden_states, or load without thin=True"
            )
        given = {name: value for name, value in kwargs.items() if value is not None and name not in _SHAPES_ONLY}
        ids, embeds = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        keep, labels = given.pop("logits_to_keep", 0), given.pop("labels", None)
        of_loss = {name: given.pop(name) for name in LOSS if name in given}
        if given:
            raise BadRequestError(
                f"a thin model's forward takes no {', '.join(sorted(given))}; leave it out, or load without thin=True"
            )
        tokens, spec = (ids, IDS) if embeds is None else (embeds, EMBEDS)
        logits = carry(step, tokens, self.remote.backend, spec, self.remote.vocab_size)
        logits = logits[:, keep if isinstance(keep, Tensor) else slice(-keep if keep else None, None)]
        loss = None if labels is None else self._loss(logits, labels, of_loss)
        return ThinOutput(loss=loss, logits=logits, **({self.remote.cache_key: step.cache} if self.remote.cache_key else {}))

    @cached_property
    def _hops_skip_padding(self) -> bool:  # type: ignore[override]
        """The hops count real tokens, but transformers' families with a table of positions count padding too, if none are given."""
        modules = self.named_modules()  # type: ignore[attr-defined]
        tables = [module for name, module in modules if isinstance(module, nn.Embedding) and _POSITIONS.search(name)]
        return any(
            "attention_mask" not in inspect.signature(table.forward).parameters for table in tables
        )  # opt's counts by the mask

    def _loss(self, logits: Tensor, labels: Tensor, others: dict[str, Any]) -> Tensor:
        vocab_size = self.remote.vocab_size
        loss: Tensor = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **others)  # type: ignore[attr-defined]
        return loss

    # --- what a model without weights is asked

    @property
    def device(self) -> torch.device:
        """Where prompts and logits are: there is no weight that says so."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of every hop. Logits come as float32."""
        return self.remote.backend.dtype

    def __repr__(self) -> str:
        """Without the modules inside: those describe themselves by weights that are not here."""
        blocks = counted(self.remote.num_blocks, "block")
        return f"{type(self).__name__}({blocks}, embedding and head of {self.remote.backend.model.name} in a swarm)"


def build_thin(checkpoint: Checkpoint, backend: Backend, *mixins: type) -> Any:
    """A model of the checkpoint's own class that generates over `backend`; of the checkpoint only configs are read."""
    model = meta_model(checkpoint.config, 0, 0, backend.dtype)
    for module in model.modules():
        _empty(module)
    inside = [module for module in model.modules() if module is not model]
    refuse_calls(inside, ", which gives logits; for hidden states, load it without thin=True")
    num_blocks = model.swarm_location.num_blocks
    become_remote(model, (ThinGeneration, *mixins), checkpoint, backend, num_blocks, checkpoint.vocab_size)
    return model.eval()


def _empty(module: nn.Module) -> None:
    """Take the shapes of weights away: what is left moves to any device, counts no parameter and saves nothing by mistake."""
    module._parameters.clear()
    module._buffers.clear()
