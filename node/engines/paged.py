"""Paged engine: sequences side by side, keys and values in pages.

It serves spans that cannot be packed: families whose own attention code still uses transformers' masks and cache (bloom, falcon, gptj), and
blocks with recurrent or convolution states. Sequences are right-padded to the longest, with the masks that the model makes.

States cannot be padded, so sequences of such a span share a forward only if they bring equally many tokens. If a family continues a state
only token by token (`unroll`), longer steps are fed so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.engines.paged_cache import Batch, MeasuringCache, PagedCache, PagedSequence, has_own_windows, install_masks, use_batch
from node.engines.pages import PAGE_TOKENS, PagePool
from node.engines.recurrent import check_chunks
from node.engines.sequence_store import BlockShape, Chunking, Mode
from node.engines.step_limits import StepLimits
from protocols.errors import BadRequestError, CacheFullError, ModelNotSupportedError
from protocols.words import counted
from swarm.models.span import SpanModule

LONG_TOKENS = 8
"""Most new tokens of a sequence that shares a forward with shorter steps: beyond, padding costs more than a second forward."""

Chunk = tuple[int, int, int]
"""(item, first token, last token + 1): a prefill chunk, or all new tokens, of one item of a step."""

_MEASURED_TOKENS = 8  # longer than the convolutions of recurrent blocks, whose first run fixes the size of their states


class PagedEngine:
    """Engine for blocks that use transformers' masks and one cache layer a block. Contract: `Engine` in `engine.py`."""

    mode: Mode = "paged"

    def __init__(self, span: SpanModule, limit_bytes: int, *, unroll: bool = False, limits: StepLimits | None = None) -> None:
        """unroll: feed a sequence that already has tokens one token at a time. ModelNotSupportedError if paging cannot work."""
        self.hidden_size, self.dtype, self.device = span.hidden_size, span.dtype, span.device
        self.forwards = 0
        self._span, self._unroll, self._limits = span, unroll, limits or StepLimits()
        self.chunking: Chunking = "after_first" if unroll else "always"
        if has_own_windows(span.layers):
            raise ModelNotSupportedError("its attention has windows of its own, besides transformers' masks")
        install_masks()
        shapes, self._state_bytes = self._measure()
        self._pool = PagePool(shapes, limit_bytes)
        self._has_pages = bool(shapes)
        self._cache = PagedCache(span.config, self._pool)
        self._num_states = 0
        self.can_crop = not self._cache.recurrent
        if self._cache.recurrent and not unroll:
            check_chunks(span)

    @property
    def limit_bytes(self) -> int:
        return self._pool.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int) -> None:
        self._pool.limit_bytes = limit_bytes

    @property
    def used_bytes(self) -> int:
        return self._pool.num_used * self._pool.page_bytes + self._num_states * self._state_bytes

    def open(self) -> PagedSequence:
        return PagedSequence()

    def fork(self, sequence: PagedSequence) -> PagedSequence:
        """A sequence with the same tokens; each page is shared until one of the two writes to it."""
        if sequence.states and self._state_bytes > self.limit_bytes - self.used_bytes:
            raise CacheFullError(
                f"no memory for another sequence's state: it takes {self._state_bytes} bytes; end a session, or ask another peer"
            )
        self._pool.share(sequence.pages)
        self._num_states += bool(sequence.states)
        return PagedSequence(sequence.length, list(sequence.pages), dict(sequence.states))

    def crop(self, sequence: PagedSequence, count: int) -> None:
        """Drop the last `count` tokens. BadRequestError if a block's state cannot be rewound."""
        assert 0 <= count <= sequence.length
        if count == sequence.length:
            return self.close(sequence)
        if count and self._cache.recurrent:
            raise BadRequestError("these blocks keep a running state, which cannot be rewound: generate without speculation")
        sequence.length -= count
        keep = -(-sequence.length // PAGE_TOKENS)
        self._pool.drop(sequence.pages[keep:])
        del sequence.pages[keep:]

    def close(self, sequence: PagedSequence) -> None:
        """Give the sequence's memory back, but for pages that a fork uses."""
        self._pool.drop(sequence.pages)
        self._num_states -= bool(sequence.states)
        sequence.length, sequence.pages, sequence.states = 0, [], {}

    def growth_bytes(self, items: Sequence[tuple[PagedSequence, int]]) -> int:
        return self._new_pages(items) * self._pool.page_bytes + self._new_states(items) * self._state_bytes

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[PagedSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        assert hidden.shape[1] == sum(count for _, count in items)
        self._reserve(items)
        before = [(sequence.length, dict(sequence.states)) for sequence, _ in items]
        flat = [None] * len(items) if positions is None else list(positions.split([count for _, count in items]))
        inputs = list(hidden[0].split([count for _, count in items]))
        outputs: list[list[Tensor]] = [[] for _ in items]
        try:
            for group in self._groups(items):
                self._forward(items, group, inputs, flat, outputs)
        except BaseException:
            for (sequence, _), (length, states) in zip(items, before, strict=True):
                self._num_states -= bool(sequence.states) - bool(states)
                sequence.length, sequence.states = length, states
            raise
        return torch.cat([part for parts in outputs for part in parts])[None]

    def warm_up(self) -> bool:
        return False

    def _groups(self, items: Sequence[tuple[PagedSequence, int]]) -> list[list[Chunk]]:
        """The forwards of a step, each a list of `Chunk`."""
        whole = [(index, 0, count) for index, (_, count) in enumerate(items)]
        if not self._cache.recurrent:
            short = [chunk for chunk in whole if chunk[2] <= LONG_TOKENS]
            long = [chunk for chunk in whole if chunk[2] > LONG_TOKENS]
            lengths = [sequence.length + count for sequence, count in items]
            return [group for chunks in (short, long) for group in bounded(chunks, lengths, self._limits)]
        groups: dict[tuple[int, bool, int], list[Chunk]] = {}
        for index, _, count in whole:
            sequence = items[index][0]
            if self._unroll and sequence.length:
                for at in range(count):
                    groups.setdefault((at, True, 1), []).append((index, at, at + 1))
            else:
                groups.setdefault((0, bool(sequence.states), count), []).append((index, 0, count))
        lengths = [sequence.length + count for sequence, count in items]
        can_cut = not self._unroll  # with `unroll`, a state must begin with all first tokens of its sequence at once
        return [group for key in sorted(groups) for group in bounded(groups[key], lengths, self._limits, can_cut=can_cut)]

    def _forward(
        self,
        items: Sequence[tuple[PagedSequence, int]],
        group: Sequence[Chunk],
        inputs: Sequence[Tensor],
        positions: Sequence[Tensor | None],
        outputs: list[list[Tensor]],
    ) -> None:
        """Run `group` as one forward: append its outputs to those of each item, and its tokens to the sequences."""
        sequences = [(items[index][0], stop - start) for index, start, stop in group]
        batch = Batch(sequences, self.device)
        hidden = batch.spread(torch.cat([inputs[index][start:stop] for index, start, stop in group]))
        numbers = batch.numbers
        given = [position[start:stop] for index, start, stop in group if (position := positions[index]) is not None]
        if given:
            numbers = batch.spread(torch.cat(given).to(self.device))
        had_state = [bool(sequence.states) for sequence, _ in sequences]
        with use_batch(batch):
            self._cache.join_states([sequence for sequence, _ in sequences])
            result = batch.gather(self._span(hidden, self._cache, position_ids=numbers))
            self._cache.split_states([sequence for sequence, _ in sequences])
        self.forwards += 1
        self._num_states += sum(
            bool(sequence.states) and not had for (sequence, _), had in zip(sequences, had_state, strict=True)
        )
        parts = result.split([count for _, count in sequences])
        for (index, _, _), (sequence, count), part in zip(group, sequences, parts, strict=True):
            outputs[index].append(part)
            sequence.length += count

    def _reserve(self, items: Sequence[tuple[PagedSequence, int]]) -> None:
        """Take every page that the step needs. CacheFullError: none was taken."""
        states = self._new_states(items) * self._state_bytes
        count = self._new_pages(items)
        free = self.limit_bytes - self.used_bytes
        if states + count * self._pool.page_bytes > free:
            tokens = sum(count for _, count in items)
            raise CacheFullError(
                f"no memory for {counted(tokens, 'more token')}: they take {states + count * self._pool.page_bytes} bytes, "
                f"{free} of {self.limit_bytes} are free; end a session, or ask another peer"
            )
        pages = self._pool.take(count) if count else []
        for sequence, tokens in items:
            if self._has_pages:
                last = sequence.length // PAGE_TOKENS
                if sequence.length % PAGE_TOKENS and self._pool.is_shared(sequence.pages[last]):
                    page = pages.pop()
                    self._pool.copy(sequence.pages[last], page)
                    self._pool.drop([sequence.pages[last]])
                    sequence.pages[last] = page
                while len(sequence.pages) * PAGE_TOKENS < sequence.length + tokens:
                    sequence.pages.append(pages.pop())
        assert not pages

    def _new_pages(self, items: Sequence[tuple[PagedSequence, int]]) -> int:
        if not self._has_pages:
            return 0
        left: dict[int, int] = {}
        count = 0
        for sequence, tokens in items:
            count += max(0, -(-(sequence.length + tokens) // PAGE_TOKENS) - len(sequence.pages))
            if sequence.length % PAGE_TOKENS:
                page = sequence.pages[sequence.length // PAGE_TOKENS]
                refs = left.get(page, self._pool.refs(page))
                if refs > 1:
                    left[page] = refs - 1
                    count += 1
        return count

    def _new_states(self, items: Sequence[tuple[PagedSequence, int]]) -> int:
        return sum(not sequence.states for sequence, _ in items) if self._cache.recurrent else 0

    @torch.inference_mode()
    def _measure(self) -> tuple[list[BlockShape], int]:
        cache = MeasuringCache(self._span.config)
        self._span(torch.zeros(1, _MEASURED_TOKENS, self.hidden_size, dtype=self.dtype, device=self.device), cache)
        return cache.shapes(), cache.state_bytes()


def bounded(chunks: Sequence[Chunk], lengths: Sequence[int], limits: StepLimits, *, can_cut: bool = True) -> list[list[Chunk]]:
    """Group `chunks` into forwards within `limits`; mostly one for all. Pure.

    lengths: tokens of each item's sequence after the step. A prefill chunk that alone exceeds `limits.pairs` is split into consecutive
    ones if `can_cut`, else it has its own forward.
    """
    groups: list[list[Chunk]] = []
    group: list[Chunk] = []
    widest = 0
    for chunk in sorted(chunks, key=lambda chunk: lengths[chunk[0]]):
        index, start, stop = chunk
        count, longest = stop - start, lengths[index]
        if count * longest > limits.pairs:
            size = max(1, limits.pairs // longest) if can_cut else count
            groups += [[(index, at, min(at + size, stop))] for at in range(start, stop, size)]
            continue
        num_sequences, wide = len(group) + 1, max(widest, count)
        if group and (num_sequences * longest > limits.gathered or num_sequences * wide * longest > limits.pairs):
            groups.append(group)
            group, wide = [], count
        group.append(chunk)
        widest = wide
    return [*groups, group] if group else groups
