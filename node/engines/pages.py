"""Paged memory for keys and values: pages of 16 tokens.

A sequence takes pages as it grows; a page's number is valid in every block. Page 0 takes the writes and reads of padding. A page is zeroed
when it is taken, since a masked NaN is still NaN. Forks share pages, and copy one at the first write. The tensors behind the pages grow by
half if pages run out, never beyond the limit, and are freed with the last page.

Shapes: P pages, S slots (tokens) a page, N kv heads, D head size: [P, S, N, D] a block, for keys and for values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.engines.sequence_store import BlockShape
from protocols.errors import CacheFullError
from protocols.words import counted

PAGE_TOKENS = 16
"""Tokens of a page: a sequence wastes at most so many slots, less one."""

FIRST_PAGES = 32
"""Pages of the smallest allocation, if the limit allows it."""


class PagePool:
    """Hands out page numbers within `limit_bytes`, and holds the tensors behind them."""

    def __init__(self, shapes: Sequence[BlockShape], limit_bytes: int) -> None:
        self.page_bytes = max(1, sum(shape.token_bytes for shape in shapes) * PAGE_TOKENS)
        self.num_used = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._shapes = tuple(shapes)
        self.limit_bytes = limit_bytes
        self._refs: dict[int, int] = {}
        self._free: list[int] = []
        self._capacity = 0

    @property
    def _limit_pages(self) -> int:
        return self.limit_bytes // self.page_bytes

    @property
    def num_free(self) -> int:
        """Pages that may still be taken."""
        return self._limit_pages - self.num_used

    def is_shared(self, page: int) -> bool:
        return self._refs[page] > 1

    def refs(self, page: int) -> int:
        return self._refs[page]

    def take(self, count: int) -> list[int]:
        """Numbers of `count` zeroed pages. CacheFullError if fewer are free; then none is taken."""
        if count > self.num_free:
            raise CacheFullError(
                f"no memory for {counted(count * PAGE_TOKENS, 'more token')}: they take {counted(count, 'page')}, "
                f"{self.num_free} of {self._limit_pages} are free; end a session, or ask another peer"
            )
        if count > len(self._free):
            self._grow(self.num_used + count)
        pages = [self._free.pop() for _ in range(count)]
        self._refs |= dict.fromkeys(pages, 1)
        self.num_used += count
        index = torch.tensor(pages)
        for store in (*self.keys, *self.values):
            store[index.to(store.device)] = 0
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Add one reference to each page; each needs a `drop` of its own."""
        for page in pages:
            self._refs[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """Give back one reference to each page. A page without references is free."""
        for page in pages:
            self._refs[page] -= 1
            if not self._refs[page]:
                del self._refs[page]
                self._free.append(page)
                self.num_used -= 1
        if not self.num_used:
            self.keys, self.values, self._free, self._capacity = [], [], [], 0

    def copy(self, source: int, target: int) -> None:
        """Copy the content of page `source` to page `target`, in every block."""
        for store in (*self.keys, *self.values):
            store[target] = store[source]

    def _grow(self, count: int) -> None:
        """Enlarge the tensors so that `count` pages and page 0 fit. CacheFullError if the device has no memory."""
        target = min(max(count, FIRST_PAGES, self._capacity * 3 // 2), max(count, self._limit_pages)) + 1
        first = max(self._capacity, 1)
        try:
            keys = [
                _enlarged(self._shapes[i], self.keys[i] if self.keys else None, target, False) for i in range(len(self._shapes))
            ]
            values = [
                _enlarged(self._shapes[i], self.values[i] if self.values else None, target, True)
                for i in range(len(self._shapes))
            ]
        except (RuntimeError, MemoryError) as error:  # the device has less memory than it promised
            raise CacheFullError(f"the device has no memory for {counted(target, 'page')}; ask another peer") from error
        self.keys, self.values = keys, values
        self._free = [*range(target - 1, first - 1, -1), *self._free]
        self._capacity = target


def _enlarged(shape: BlockShape, old: Tensor | None, num_pages: int, is_value: bool) -> Tensor:
    size = shape.value_size if is_value else shape.key_size
    new = torch.empty(num_pages, PAGE_TOKENS, shape.num_heads, size, dtype=shape.dtype, device=shape.device)
    new[0] = 0
    if old is not None:
        new[: len(old)] = old
    return new
