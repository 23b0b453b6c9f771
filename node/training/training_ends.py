"""Embedding and head of a model in training, differentiable.

As in serving (`node/engines/ends.py`), the model's own forward runs with a tap in place of its blocks, so no family needs code of its own.

Shapes: B sequences of T tokens, E embedding width, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from node.training import documents
from node.training.compute_format import Compute, computing_in
from node.training.flight import Kind
from node.training.module_state import ModuleState
from protocols.errors import BadRequestError
from swarm.models.loading import EndsModel
from swarm.models.refusal import refused
from swarm.models.stand_in import Tap, replace_blocks


class TrainingEnds:
    """Embedding, norm and head. Not thread-safe."""

    def __init__(self, ends: EndsModel, compute: Compute = "float32") -> None:
        """ends: its modules are this object's from now on. ModelNotSupportedError if they cannot run apart from the blocks."""
        self._model, self._decoder, self._compute = ends.model, ends.model.swarm_location.decoder, compute
        self._tap = Tap(ends.template, ends.returns_tuple)
        replace_blocks(ends.model, self._tap, ends.owner, ends.attribute)
        parameters = inspect.signature(type(self._decoder).forward).parameters
        has_cache = "past_key_values" in parameters or "cache_params" in parameters
        self._options: dict[str, Any] = {"use_cache": False} if has_cache else {}
        self.takes_positions = "position_ids" in parameters
        weight = ends.model.get_input_embeddings().weight
        self.num_embeddings, self.embed_width = int(weight.shape[0]), int(ends.model.swarm_location.embed_width)
        self.device, self.dtype = weight.device, weight.dtype
        self._state = ModuleState(ends.model)
        self._way: documents.Way | None = None
        self.vocab_size = self._head_width()

    def embed(self, kind: Kind, values: Tensor, positions: Tensor | None) -> Tensor:
        """The hidden states [B, T, H] that enter block 0, of ids [B, T] in [0, num_embeddings), or of embeds [B, T, E]."""
        if positions is None:
            return self._embed(kind, values, None)
        if self._way is None:
            ids = torch.arange(documents.test_tokens()[0] * documents.test_tokens()[1], device=self.device) % self.num_embeddings
            with torch.no_grad():
                self._way = documents.choose_way(
                    lambda given, at: self._embed("ids", given, at), ids.view(documents.test_tokens())
                )
        return documents.run(lambda given, at: self._embed(kind, given, at), values, positions, self._way)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states that left the last block, [B, T, H] -> logits [B, T, V]; T is at most 64 (position tables may be short)."""
        blank = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)  # its embedding is not used
        self._tap.given = hidden
        try:
            with computing_in(self._compute, self.device):
                logits: Tensor = self._model(input_ids=blank, **self._options).logits
        finally:
            self._tap.given = self._tap.taken = None
            self._state.restore()
        return logits

    def _embed(self, kind: Kind, values: Tensor, positions: Tensor | None) -> Tensor:
        arguments: dict[str, Any] = {"input_ids" if kind == "ids" else "inputs_embeds": values, **self._options}
        if positions is not None:
            if not self.takes_positions:
                raise BadRequestError("this model counts positions by itself")
            arguments["position_ids"] = positions
        self._tap.given = None
        try:
            self._decoder(**arguments)
            taken = self._tap.taken
        finally:
            self._tap.taken = None
            self._state.restore()
        assert taken is not None, "the model ran past the tap"
        return taken

    @torch.no_grad()
    def _head_width(self) -> int:
        """Logits of one token: a trial of both sides."""
        with refused(f"train embedding and head of a {self._model.config.model_type} apart from its blocks"):
            hidden = self._embed("ids", torch.zeros(1, 2, dtype=torch.long, device=self.device), None)
            return int(self.logits(hidden).shape[-1])
