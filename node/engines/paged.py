"""Paged engine: rows side by side, right-padded to the longest step, keys and values in pages, masks as the model makes them.

Covers what packing cannot: attention code of a family's own that still uses transformers' masks and cache (bloom, falcon, gptj),
and blocks with recurrent or convolution states. Those states cannot be padded, so rows of such a span share a forward only where
they bring equally many tokens. Where a family continues a state only token by token (`unroll`), longer pieces are fed so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.engines.paged_cache import Batch, LearningCache, PagedCache, PagedSequence, has_own_windows, install_masks, use_batch
from node.engines.pages import PAGE_TOKENS, PagePool
from node.engines.recurrent import check_chunks
from node.engines.sequence_store import BlockShape, Chunking, Mode
from protocols.errors import BadRequestError, CacheFullError, ModelNotSupportedError
from protocols.words import counted
from swarm.models.span import SpanModule

LONG_TOKENS = 8
"""Steps longer than this do not share a forward with shorter ones: padding would cost more than the second forward."""

MAX_GATHERED = 1 << 14
"""Rows times tokens of the longest one, of one forward: every block copies so many keys and values out of their pages. So a long row
does not stretch a crowd of short ones."""

MAX_PAIRS = 1 << 20
"""Rows times new tokens times tokens of the longest row: scores of one head. Longer steps are fed in parts."""

Piece = tuple[int, int, int]
"""(item, first token, last token + 1) of a step."""

_LEARN_TOKENS = 8  # longer than the convolutions of recurrent blocks, whose states are sized by the first run


class PagedEngine:
    """Engine for blocks that use transformers' masks and one cache layer a block."""

    mode: Mode = "paged"

    def __init__(self, span: SpanModule, limit_bytes: int, *, unroll: bool = False) -> None:
        """`unroll`: feed a row that has tokens already one token at a time. ModelNotSupportedError where paging cannot work."""
        self.hidden_size, self.dtype, self.device = span.hidden_size, span.dtype, span.device
        self.forwards = 0
        self._span, self._unroll = span, unroll
        self.chunking: Chunking = "after_first" if unroll else "always"
        if has_own_windows(span.layers):
            raise ModelNotSupportedError("its attention has windows of its own, besides transformers' masks")
        install_masks()
        shapes, self._state_bytes = self._learn()
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
        return self._pool.num_lent * self._pool.page_bytes + self._num_states * self._state_bytes

    def open(self) -> PagedSequence:
        return PagedSequence()

    def fork(self, row: PagedSequence) -> PagedSequence:
        """A row with the same tokens; its pages are shared until one of the two writes."""
        if row.states and self._state_bytes > self.limit_bytes - self.used_bytes:
            raise CacheFullError(
                f"no memory for another row's state: it takes {self._state_bytes} bytes; end a session, or ask another peer"
            )
        self._pool.share(row.pages)
        self._num_states += bool(row.states)
        return PagedSequence(row.length, list(row.pages), dict(row.states))

    def crop(self, row: PagedSequence, count: int) -> None:
        """Drop the last `count` tokens. BadRequestError where a block's state cannot be rewound."""
        assert 0 <= count <= row.length
        if count == row.length:
            return self.close(row)
        if count and self._cache.recurrent:
            raise BadRequestError("these blocks keep a running state, which cannot be rewound: generate without speculation")
        row.length -= count
        keep = -(-row.length // PAGE_TOKENS)
        self._pool.drop(row.pages[keep:])
        del row.pages[keep:]

    def close(self, row: PagedSequence) -> None:
        """Give all of the row's memory back."""
        self._pool.drop(row.pages)
        self._num_states -= bool(row.states)
        row.length, row.pages, row.states = 0, [], {}

    def growth_bytes(self, items: Sequence[tuple[PagedSequence, int]]) -> int:
        return self._new_pages(items) * self._pool.page_bytes + self._new_states(items) * self._state_bytes

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[PagedSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        assert hidden.shape[1] == sum(count for _, count in items)
        self._reserve(items)
        before = [(row.length, dict(row.states)) for row, _ in items]
        flat = [None] * len(items) if positions is None else list(positions.split([count for _, count in items]))
        pieces = list(hidden[0].split([count for _, count in items]))
        outputs: list[list[Tensor]] = [[] for _ in items]
        try:
            for group in self._groups(items):
                self._forward(items, group, pieces, flat, outputs)
        except BaseException:
            for (row, _), (length, states) in zip(items, before, strict=True):
                self._num_states -= bool(row.states) - bool(states)
                row.length, row.states = length, states
            raise
        return torch.cat([part for parts in outputs for part in parts])[None]

    def warm_up(self) -> bool:
        return False

    def _groups(self, items: Sequence[tuple[PagedSequence, int]]) -> list[list[Piece]]:
        """Forwards of a step, each a list of (item, first token, last token + 1)."""
        whole = [(index, 0, count) for index, (_, count) in enumerate(items)]
        if not self._cache.recurrent:
            short = [piece for piece in whole if piece[2] <= LONG_TOKENS]
            long = [piece for piece in whole if piece[2] > LONG_TOKENS]
            lengths = [row.length + count for row, count in items]
            return [group for pieces in (short, long) for group in bounded(pieces, lengths)]
        groups: dict[tuple[int, bool, int], list[Piece]] = {}
        for index, _, count in whole:
            row = items[index][0]
            if self._unroll and row.length:
                for at in range(count):
                    groups.setdefault((at, True, 1), []).append((index, at, at + 1))
            else:
                groups.setdefault((0, bool(row.states), count), []).append((index, 0, count))
        lengths = [row.length + count for row, count in items]
        can_cut = not self._unroll  # a state that goes on token by token begins with all of its row's first tokens at once
        return [group for key in sorted(groups) for group in bounded(groups[key], lengths, can_cut=can_cut)]

    def _forward(
        self,
        items: Sequence[tuple[PagedSequence, int]],
        group: Sequence[Piece],
        pieces: Sequence[Tensor],
        positions: Sequence[Tensor | None],
        outputs: list[list[Tensor]],
    ) -> None:
        """Run some pieces of the step together and commit them."""
        rows = [(items[index][0], stop - start) for index, start, stop in group]
        batch = Batch(rows, self.device)
        hidden = batch.spread(torch.cat([pieces[index][start:stop] for index, start, stop in group]))
        numbers = batch.numbers
        given = [position[start:stop] for index, start, stop in group if (position := positions[index]) is not None]
        if given:
            numbers = batch.spread(torch.cat(given).to(self.device))
        had_state = [bool(row.states) for row, _ in rows]
        with use_batch(batch):
            self._cache.join_states([row for row, _ in rows])
            result = batch.gather(self._span(hidden, self._cache, position_ids=numbers))
            self._cache.part_states([row for row, _ in rows])
        self.forwards += 1
        self._num_states += sum(bool(row.states) and not had for (row, _), had in zip(rows, had_state, strict=True))
        parts = result.split([count for _, count in rows])
        for (index, _, _), (row, count), part in zip(group, rows, parts, strict=True):
            outputs[index].append(part)
            row.length += count

    def _reserve(self, items: Sequence[tuple[PagedSequence, int]]) -> None:
        """Lend every page that the step needs, or raise CacheFullError with nothing lent."""
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
        for row, tokens in items:
            if self._has_pages:
                last = row.length // PAGE_TOKENS
                if row.length % PAGE_TOKENS and self._pool.is_shared(row.pages[last]):
                    page = pages.pop()
                    self._pool.copy(row.pages[last], page)
                    self._pool.drop([row.pages[last]])
                    row.pages[last] = page
                while len(row.pages) * PAGE_TOKENS < row.length + tokens:
                    row.pages.append(pages.pop())
        assert not pages

    def _new_pages(self, items: Sequence[tuple[PagedSequence, int]]) -> int:
        if not self._has_pages:
            return 0
        left: dict[int, int] = {}
        count = 0
        for row, tokens in items:
            count += max(0, -(-(row.length + tokens) // PAGE_TOKENS) - len(row.pages))
            if row.length % PAGE_TOKENS:
                page = row.pages[row.length // PAGE_TOKENS]
                refs = left.get(page, self._pool.refs(page))
                if refs > 1:
                    left[page] = refs - 1
                    count += 1
        return count

    def _new_states(self, items: Sequence[tuple[PagedSequence, int]]) -> int:
        return sum(not row.states for row, _ in items) if self._cache.recurrent else 0

    @torch.inference_mode()
    def _learn(self) -> tuple[list[BlockShape], int]:
        cache = LearningCache(self._span.config)
        self._span(torch.zeros(1, _LEARN_TOKENS, self.hidden_size, dtype=self.dtype, device=self.device), cache)
        return cache.shapes(), cache.state_bytes()


def bounded(pieces: Sequence[Piece], lengths: Sequence[int], *, can_cut: bool = True) -> list[list[Piece]]:
    """Forwards for these pieces, of rows that will have `lengths` tokens, so that none passes the two limits above. Pure.

    A piece that passes them alone is cut into parts, one after the other, or has a forward of its own; mostly there is one for all.
    """
    groups: list[list[Piece]] = []
    group: list[Piece] = []
    widest = 0
    for piece in sorted(pieces, key=lambda piece: lengths[piece[0]]):
        index, start, stop = piece
        count, longest = stop - start, lengths[index]
        if count * longest > MAX_PAIRS:
            size = max(1, MAX_PAIRS // longest) if can_cut else count
            groups += [[(index, at, min(at + size, stop))] for at in range(start, stop, size)]
            continue
        rows, wide = len(group) + 1, max(widest, count)
        if group and (rows * longest > MAX_GATHERED or rows * wide * longest > MAX_PAIRS):
            groups.append(group)
            group, wide = [], count
        group.append(piece)
        widest = wide
    return [*groups, group] if group else groups
