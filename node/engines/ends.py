"""Embedding, final norm and head of a model: one unit, `Ends`.

The model's own forward runs, with a tap in place of its blocks. The tap receives the embedding of the tokens (positions, scaling and norms
included); what it returns goes through the model's own norm, head, scaling and cap. So no family needs code of its own, and tied weights
are in memory once.

Tokens of many sequences share one flat axis; each token's position is its place in its sequence. If a family counts positions by itself,
each sequence is embedded alone. The self-test at load decides which of the two is exact (`ends_selftest.py`), never a family's name.

Shapes: T tokens on one flat axis, T' tokens whose logits are wanted, E embedding width, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from protocols.errors import BadRequestError
from protocols.logit_changes import LogitChanges
from swarm.inference.hop.compute import EndsShape
from swarm.models.loading import EndsModel
from swarm.models.stand_in import Tap, replace_blocks

LOGITS_BYTES = 64 << 20
"""Bytes of float32 logits of one run of the head; a larger batch takes several runs."""

TABLE_TOKENS = 64
"""Tokens of one run of the head if the model counts positions by itself: every position table is at least as long."""


FINAL_TOKENS = 1024
"""Tokens of one run of the last norm."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """`count` new tokens of a sequence that already has `past` tokens."""

    past: int
    count: int


class _Past(Cache):  # type: ignore[misc]
    """A cache that holds only a length, for models that take positions from their cache."""

    is_compileable = False

    def __init__(self, length: int) -> None:
        super().__init__(layers=[])
        self._length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self._length > 0

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a block ran with the embedding and head")


class Ends:
    """Embedding, norm and head of one model, in one dtype. Not thread-safe: all calls come from one thread."""

    def __init__(self, ends: EndsModel, vocab_size: int, *, is_flat: bool = True, logits_bytes: int = LOGITS_BYTES) -> None:
        """is_flat: embed the tokens of all sequences in one run; False: one run for each sequence. logits_bytes: of one run of the head."""
        self._model = ends.model
        self._tap = Tap(ends.template, ends.returns_tuple)
        replace_blocks(ends.model, self._tap, ends.owner, ends.attribute)
        location = ends.model.swarm_location
        weight = next(ends.model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.shape = EndsShape(vocab_size=vocab_size, embed_width=location.embed_width)
        self._decoder: Any = location.decoder
        parameters = inspect.signature(type(self._decoder).forward).parameters
        self._cache_key = next((key for key in ("past_key_values", "cache_params") if key in parameters), None)
        self._takes_mask = "attention_mask" in parameters
        self.takes_positions = "position_ids" in parameters
        self.head_takes_positions = "position_ids" in inspect.signature(type(ends.model).forward).parameters
        self.is_flat, self._logits_bytes = is_flat, logits_bytes

    @property
    def has_cache(self) -> bool:
        """Does the model's forward take a cache?"""
        return self._cache_key is not None

    @property
    def mode(self) -> str:
        """How sequences are embedded, in words for people."""
        return "flat" if self.is_flat else "sequence by sequence"

    # --- the first hop

    @torch.inference_mode()
    def embed(self, kind: str, values: Tensor, stretches: Sequence[Stretch], positions: Tensor | None = None) -> Tensor:
        """The hidden states that enter block 0: [T, H], on `device`.

        kind: "ids" or "embeds". values: ids [T], each in [0, V), or embeds [T, E]; stretches: the sequences of these tokens, one after the
        other, T tokens in all. positions: [T]; None: each token's place in its sequence. BadRequestError if positions are given and the
        model counts by itself.
        """
        values = values.to(self.device) if kind == "ids" else values.to(self.device, self.dtype)
        if self.is_flat:
            places = (
                positions if positions is not None else torch.cat([torch.arange(s.past, s.past + s.count) for s in stretches])
            )
            return self._run(kind, values, places if self.takes_positions else None, {})
        if positions is not None and not self.takes_positions:
            raise BadRequestError("this model counts positions by itself; pass no position_ids")
        return torch.cat([self._sequence(kind, *chunk) for chunk in _by_sequence(values, stretches, positions)])

    def _sequence(self, kind: str, values: Tensor, stretch: Stretch, positions: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"use_cache": True, self._cache_key: _Past(stretch.past)} if self._cache_key else {}
        if self._takes_mask:
            options["attention_mask"] = torch.ones(1, stretch.past + stretch.count, dtype=torch.long, device=self.device)
        places = torch.arange(stretch.past, stretch.past + stretch.count) if positions is None else positions
        return self._run(kind, values, places if self.takes_positions else None, options)

    def _run(self, kind: str, values: Tensor, positions: Tensor | None, options: dict[str, Any]) -> Tensor:
        name = "input_ids" if kind == "ids" else "inputs_embeds"
        arguments: dict[str, Any] = {**({"use_cache": False} if self.has_cache else {}), name: values[None], **options}
        if positions is not None:
            arguments["position_ids"] = positions.to(self.device)[None]
        self._tap.taken, self._tap.given = None, None
        self._decoder(**arguments)
        assert self._tap.taken is not None, "the model ran past the tap"
        return self._tap.taken[0]

    # --- the last hop

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states that left the last block, [T', H] -> float32 logits [T', V], on the CPU."""
        if not len(hidden):
            return torch.empty(0, self.shape.vocab_size)
        size = max(1, self._logits_bytes // (4 * self.shape.vocab_size))
        return self._in_runs(self._model, "logits", hidden, size)

    @torch.inference_mode()
    def final(self, hidden: Tensor) -> Tensor:
        """The same as float32 final hidden states, which transformers' model without head gives: behind the last norm, [T', H]."""
        if not len(hidden):
            return torch.empty(0, hidden.shape[-1])
        return self._in_runs(self._model.base_model, "last_hidden_state", hidden, FINAL_TOKENS)

    def _in_runs(self, model: Any, name: str, hidden: Tensor, size: int) -> Tensor:
        """What `model` gives under this name, for at most `size` tokens in one run."""
        size = size if self.head_takes_positions else min(size, TABLE_TOKENS)
        return torch.cat([self._run_behind(model, name, chunk).float().cpu() for chunk in hidden.split(size)])

    def _run_behind(self, model: Any, name: str, hidden: Tensor) -> Tensor:
        self._tap.given = hidden.to(self.device, self.dtype)[None]
        arguments: dict[str, Any] = {"use_cache": False} if self.has_cache else {}
        if (
            self.head_takes_positions
        ):  # positions have no effect here, but the model's table of them may be shorter than this axis
            arguments["position_ids"] = torch.zeros(1, len(hidden), dtype=torch.long, device=self.device)
        blank = torch.zeros(1, len(hidden), self.shape.embed_width, device=self.device, dtype=self.dtype)
        try:
            output: Tensor = getattr(model(inputs_embeds=blank, **arguments), name)[0]
        finally:
            self._tap.given = None
        return output


def _by_sequence(
    values: Tensor, stretches: Sequence[Stretch], positions: Tensor | None
) -> Iterator[tuple[Tensor, Stretch, Tensor | None]]:
    at = 0
    for stretch in stretches:
        if stretch.count:
            stop = at + stretch.count
            yield values[at:stop], stretch, None if positions is None else positions[at:stop]
            at = stop


def changed(logits: Tensor, changes: LogitChanges) -> Tensor:
    """Float32 logits [T', V] with these changes, as numpy makes them at a client that has all logits: to the last bit."""

    def of(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)

    made, penalty = logits.clone(), of([changes.penalty])
    for pairs, sign in ((changes.bias, 1), ((), 0), (changes.less, -1)):
        if not sign and changes.repeated:
            repeated = list(changes.repeated)
            seen = made[:, repeated]
            made[:, repeated] = torch.where(seen < 0, seen * penalty, seen / penalty)
        elif pairs:
            made[:, [token for token, _ in pairs]] += sign * of([value for _, value in pairs])
    return made


def allowed(logits: Tensor, mask: bytes) -> Tensor:
    """Logits [T', V] in which what the mask excludes (`StepSpec.mask`, of V bits) is lower than any other."""
    packed = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(logits.device)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
    return logits.masked_fill(bits.flatten()[: logits.shape[-1]] == 0, torch.finfo(logits.dtype).min)


def totals(logits: Tensor, temperature: float) -> Tensor:
    """float32 [T'] of float32 logits [T', V], as `StepSpec.temperature`; summed in float64."""
    return (logits.double() / temperature).logsumexp(-1).float()


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each token's float32 logits [T', V]: values and int32 ids, both [T', count], count <= V.

    The largest comes first, and of equal values the lowest id: exact, while `torch.topk` alone may keep any of several equal values.
    """
    assert count <= logits.shape[-1], "a hop refuses to give more than there are"
    values, ids = logits.topk(count)
    if not count:
        return values, ids.to(torch.int32)
    tied = (logits >= values[:, -1:]).sum(-1) > count
    if bool(tied.any()):  # more values reach the last place than there are places
        ordered = logits[tied].sort(descending=True, stable=True)
        values[tied], ids[tied] = ordered.values[:, :count], ordered.indices[:, :count]
    ids, order = ids.sort()  # by id, and then, keeping that among equals, by value
    values = values.gather(-1, order)
    values, order = values.sort(descending=True, stable=True)
    return values, ids.gather(-1, order).to(torch.int32)
