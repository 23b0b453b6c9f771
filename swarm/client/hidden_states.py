"""What `output_hidden_states=True` returns here.

The last hidden state, and the reason why the others are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, overload

from torch import Tensor, nn

from protocols.errors import BadRequestError
from protocols.words import counted

_box: ContextVar[list[Tensor] | None] = ContextVar("murmuration_last_hidden", default=None)


class LastHiddenState(Sequence[Tensor]):
    """Looks like transformers' tuple of num_blocks + 1 hidden states, of which only the last, after the final norm, is here."""

    def __init__(self, last: Tensor, num_blocks: int) -> None:
        self._last, self._num_blocks = last, num_blocks

    def __len__(self) -> int:
        return self._num_blocks + 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if index in (-1, self._num_blocks):
            return self._last
        raise BadRequestError(
            f"hidden_states[{index}] is not here: no activation comes back to the client between hops; only hidden_states[-1] does"
        )

    def __repr__(self) -> str:
        return f"LastHiddenState({list(self._last.shape)}, after {counted(self._num_blocks, 'block')})"


def remember_output(decoder: nn.Module) -> None:
    """Make the module that runs the blocks and the final norm keep its output for a caller inside `noted`."""

    def note(module: nn.Module, args: Any, output: Any) -> None:
        box = _box.get()
        if box is not None:
            box.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    decoder.register_forward_hook(note)


@contextmanager
def noted() -> Iterator[list[Tensor]]:
    """Inside, the decoder's outputs are appended to the list."""
    box: list[Tensor] = []
    token = _box.set(box)
    try:
        yield box
    finally:
        _box.reset(token)
