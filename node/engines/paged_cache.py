"""The transformers cache and masks behind a batch of paged sequences.

A batch is right-padded. Blocks see an ordinary `Cache` whose attention layers read and write pages. While a batch is active, the mask
functions "sdpa" and "eager" of transformers evaluate the model's own mask rule at each sequence's token numbers. Without an active batch
they are transformers' own, so other models in the process are not affected. Recurrent and convolution states are kept for each sequence,
and joined for a batch.

Shapes: B sequences, Q new tokens of the longest, L tokens of the longest sequence with its new ones, S slots a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from node.engines.pages import PAGE_TOKENS, PagePool
from node.engines.sequence_store import BlockShape
from protocols.errors import ModelNotSupportedError

_KINDS = {DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer}


@dataclass(frozen=True, slots=True)
class State:
    """The state of one recurrent or convolution block for one sequence."""

    conv: dict[int, Tensor | None]
    recurrent: dict[int, Tensor | None]
    kernel: dict[int, int | None]
    dtype: torch.dtype | None
    device: torch.device | None

    @property
    def num_bytes(self) -> int:
        tensors = [*self.conv.values(), *self.recurrent.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


@dataclass(slots=True, eq=False)
class PagedSequence:
    """One sequence: its pages, and its states by block. Compared by identity: a fork with equal fields is another sequence."""

    length: int = 0
    pages: list[int] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)


class Batch:
    """Index tensors of one forward of (sequence, new tokens). The sequences already have their pages."""

    def __init__(self, items: Sequence[tuple[PagedSequence, int]], device: torch.device) -> None:
        counts = [count for _, count in items]
        self.size, self.q = len(items), max(counts)
        self.length = max(sequence.length + count for sequence, count in items)
        starts = torch.tensor([sequence.length for sequence, _ in items])[:, None]
        steps = torch.arange(self.q)[None]
        count_column = torch.tensor(counts)[:, None]
        real = steps < count_column
        self.is_full = min(counts) == self.q
        # padding repeats its sequence's last token number: a position table has no entry beyond the model's longest sequence
        self.numbers = (starts + torch.minimum(steps, count_column - 1)).to(device)
        self.real = real.to(device)
        if not items[0][0].pages:
            return  # no block of this span has attention
        at = [(sequence.pages, number) for sequence, count in items for number in range(sequence.length, sequence.length + count)]
        slots = [(pages[number // PAGE_TOKENS], number % PAGE_TOKENS) for pages, number in at]
        self.page, self.slot = torch.tensor(slots, device=device).unbind(1)
        width = -(-self.length // PAGE_TOKENS)
        self.table = torch.tensor([(sequence.pages[:width] + [0] * width)[:width] for sequence, _ in items], device=device)

    def spread(self, flat: Tensor) -> Tensor:
        """Tokens of all sequences [T, ...] -> [B, Q, ...], zeros in the padding."""
        if self.is_full:
            return flat.reshape(self.size, self.q, *flat.shape[1:])
        return flat.new_zeros(self.size, self.q, *flat.shape[1:]).index_put((self.real,), flat)

    def gather(self, spread: Tensor) -> Tensor:
        """[B, Q, ...] -> [T, ...] without the padding."""
        return spread.flatten(0, 1) if self.is_full else spread[self.real]


_BATCH: ContextVar[Batch | None] = ContextVar("paged_batch", default=None)


def active_batch() -> Batch:
    batch = _BATCH.get()
    assert batch is not None, "a paged cache is used outside a step"
    return batch


class _PageLayer(CacheLayerMixin):  # type: ignore[misc]
    """One attention block's view of the pool."""

    is_sliding = False

    def __init__(self, pool: PagePool, index: int) -> None:
        super().__init__()
        self._pool, self._index = pool, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the tokens of [B, N, Q, D] without the padding, and return all keys and values of the sequences: [B, N, L, D] each."""
        batch = active_batch()
        keys, values = self._pool.keys[self._index], self._pool.values[self._index]
        for store, new in ((keys, key_states), (values, value_states)):
            store[batch.page, batch.slot] = batch.gather(new.transpose(1, 2))
        read = [store[batch.table].flatten(1, 2)[:, : batch.length].transpose(1, 2) for store in (keys, values)]
        return read[0], read[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return active_batch().length, 0

    def get_seq_length(self) -> int:
        batch = active_batch()
        return batch.length - batch.q

    def get_max_length(self) -> int:
        return -1


class PagedCache(Cache):  # type: ignore[misc]
    """The cache of one span, for the active batch."""

    def __init__(self, config: Any, pool: PagePool) -> None:
        kinds = cache_kinds(config)
        attention = attention_blocks(kinds)
        layers = [_PageLayer(pool, attention.index(index)) if index in attention else kind for index, kind in enumerate(kinds)]
        super().__init__(layers=layers)
        self.recurrent = [index for index, kind in enumerate(kinds) if isinstance(kind, LinearAttentionLayer)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        batch = active_batch()
        return batch.length - batch.q

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return active_batch().length, 0

    def join_states(self, sequences: Sequence[PagedSequence]) -> None:
        """Make the states of `sequences` the states of the batch. All of them have states, or none has."""
        for index in self.recurrent:
            count = self.layers[index].number_of_states
            self.layers[index] = layer = LinearAttentionLayer(number_of_states=count)
            states = [sequence.states[index] for sequence in sequences if index in sequence.states]
            if not states:
                continue
            for number in range(count):
                layer.conv_states[number] = _joined([state.conv[number] for state in states])
                layer.recurrent_states[number] = _joined([state.recurrent[number] for state in states])
                layer.is_conv_states_initialized[number] = layer.conv_states[number] is not None
                layer.is_recurrent_states_initialized[number] = layer.recurrent_states[number] is not None
                layer.has_previous_state[number] = True
                layer.conv_kernel_size[number] = states[0].kernel[number]
            layer.dtype, layer.device = states[0].dtype, states[0].device

    def split_states(self, sequences: Sequence[PagedSequence]) -> None:
        """Store the batch's states in the sequences, a copy of its own in each."""
        for index in self.recurrent:
            layer = self.layers[index]
            for at, sequence in enumerate(sequences):
                sequence.states[index] = State(
                    {number: _part(tensor, at) for number, tensor in layer.conv_states.items()},
                    {number: _part(tensor, at) for number, tensor in layer.recurrent_states.items()},
                    dict(layer.conv_kernel_size),
                    layer.dtype,
                    layer.device,
                )


class _MeasuringLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that stores nothing, but notes the shape of keys and values."""

    shape: BlockShape | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.shape is None, "one attention a block"
        self.shape = BlockShape(
            key_states.shape[1], key_states.shape[3], value_states.shape[3], key_states.dtype, key_states.device
        )
        return key_states, value_states


class MeasuringCache(Cache):  # type: ignore[misc]
    """The cache of one run at load, which measures what each block keeps for a token, and for a sequence."""

    def __init__(self, config: Any) -> None:
        kinds = cache_kinds(config)
        attention = attention_blocks(kinds)
        super().__init__(layers=[_MeasuringLayer() if index in attention else kind for index, kind in enumerate(kinds)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def shapes(self) -> list[BlockShape]:
        layers = [layer for layer in self.layers if isinstance(layer, _MeasuringLayer)]
        shapes = [layer.shape for layer in layers if layer.shape is not None]
        if len(shapes) != len(layers):
            raise ModelNotSupportedError("an attention block did not use the cache")
        return shapes

    def state_bytes(self) -> int:
        layers = [layer for layer in self.layers if isinstance(layer, LinearAttentionLayer)]
        return sum(State(layer.conv_states, layer.recurrent_states, {}, None, None).num_bytes for layer in layers)


def cache_kinds(config: Any) -> list[Any]:
    """A new cache layer of each block. ModelNotSupportedError if one cannot be paged."""
    kinds: list[Any] = DynamicCache(config=config).layers
    odd = sorted({type(kind).__name__ for kind in kinds if type(kind) not in _KINDS})
    if odd:
        raise ModelNotSupportedError(f"blocks with a {', '.join(odd)} cannot be paged")
    return kinds


def attention_blocks(kinds: Sequence[Any]) -> list[int]:
    return [index for index, kind in enumerate(kinds) if isinstance(kind, DynamicLayer)]


def has_own_windows(layers: Any) -> bool:
    """Do attention modules have their own table of visible keys, narrower than causal (gpt_neo's local attention)?

    Such a table is read at the batch's longest sequence, so shorter ones would see a shifted window. A short test does not show it, since
    the table has 256 tokens. It is recognised because its last query does not see the first key.
    """
    tables = [
        buffer for buffer in layers.buffers() if buffer.dtype == torch.bool and buffer.dim() >= 2 and min(buffer.shape[-2:]) > 1
    ]
    return any(not bool(table[..., -1, 0].all()) for table in tables)


def install_masks() -> None:
    """Replace transformers' "sdpa" and "eager" mask functions in this process; a second call changes nothing."""
    for name in ("sdpa", "eager"):
        plain = ALL_MASK_ATTENTION_FUNCTIONS[name]
        if not isinstance(plain, _SequenceMasks):
            AttentionMaskInterface.register(name, _SequenceMasks(name, plain))


class _SequenceMasks:
    """A mask function of transformers that evaluates the mask rule for each sequence while a batch is active."""

    def __init__(self, name: str, plain: Any) -> None:
        self._is_bool, self._plain = name == "sdpa", plain

    def __call__(self, *args: Any, mask_function: Any = None, **options: Any) -> Tensor | None:
        batch = _BATCH.get()
        if batch is None:
            given = {} if mask_function is None else {"mask_function": mask_function}
            mask: Tensor | None = self._plain(*args, **given, **options)
            return mask
        device = batch.numbers.device
        sequences = torch.arange(batch.size, device=device)[:, None, None, None]
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        keys = torch.arange(batch.length, device=device)[None, None, None]
        allowed: Tensor = mask_function(sequences, head, batch.numbers[:, None, :, None], keys)
        allowed = allowed.expand(batch.size, 1, batch.q, batch.length)
        if self._is_bool:
            return allowed
        dtype = options["dtype"]
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)


@contextmanager
def use_batch(batch: Batch) -> Iterator[None]:
    """Make `batch` the active one within a `with` block, for this thread."""
    token = _BATCH.set(batch)
    try:
        yield
    finally:
        _BATCH.reset(token)


def _joined(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def _part(tensor: Tensor | None, at: int) -> Tensor | None:
    return None if tensor is None else tensor[at : at + 1].clone()
