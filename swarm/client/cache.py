"""What `generate` holds instead of keys and values.

How long each sequence is, and the sequence operations that wait for the next step.

K/V live at the hops. transformers asks this cache for lengths, and tells it about beams (`reorder_cache`) and refused
speculations (`crop`); both become operations that travel with the next step, so they cost no round trip of their own.

Two lengths: `columns` counts the padded columns that transformers has fed (its `get_seq_length`), `rows` the real
tokens of each sequence, which is all that hops know.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from protocols.errors import BadRequestError
from protocols.ids import ModelId
from protocols.inference import Crop, Op, Repeat, Rows
from protocols.words import counted
from swarm.client import stepping
from swarm.client.backend import StepRequest, StepSession


class RemoteCache(Cache):  # type: ignore[misc]
    """The sequences of one session. Dropping the last reference, or `close`, gives their memory back at every hop.

    The session is opened by the first step. After a step has failed the cache is closed: its sequences are in an unknown state.
    """

    is_compileable = False  # True would make `generate` build 4-D masks
    _is_user_defined = False

    def __init__(self, open_session: Callable[[], StepSession], model: ModelId | None = None) -> None:
        """model: the model that the sequences belong to; None = they are not of a whole model."""
        super().__init__(layers=[])  # hence len(cache) == 0: always compare with None
        self._open = open_session
        self._model = model
        self._session: StepSession | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._turn = threading.Lock()
        """Held during a step, so that a fork from another thread is of before it or after it."""
        self.is_closed = False
        self.columns = 0
        self.rows: list[int] | None = None
        """Real tokens per sequence; None before the first step."""
        self.ops: list[Op] = []
        """Operations that wait for the next step, already counted in `columns` and `rows`."""
        self.trips = 0
        """Steps that went through the route and came back."""

    # --- what a step does

    def step(self, request: StepRequest, columns: int) -> Tensor:
        """Send one step, the waiting operations first, and count it; whatever goes wrong closes the session."""
        with self._turn:
            return self._step(request, columns)

    def _step(self, request: StepRequest, columns: int) -> Tensor:
        session = self._opened()
        try:
            output = stepping.step(session, replace(request, ops=tuple(self.ops)))
        except BaseException:  # a KeyboardInterrupt too leaves the sequences in an unknown state
            self.close()
            raise
        self.ops = []
        self.trips += 1
        self.columns += columns
        before = self.rows or [0] * len(request.counts)
        self.rows = [old + new for old, new in zip(before, request.counts, strict=True)]
        return output

    def skip(self, size: int, columns: int) -> None:
        """Count columns that are padding in every sequence: nothing is sent."""
        self.columns += columns
        self.rows = self.rows or [0] * size

    def _opened(self) -> StepSession:
        if self.is_closed:
            raise BadRequestError(
                "the session behind this past_key_values has ended; start a new one by passing no past_key_values"
            )
        return self._session or self._own(self._open())

    def _own(self, session: StepSession) -> StepSession:
        self._session = session
        self._finalizer = weakref.finalize(self, session.close)
        self._finalizer.atexit = False  # at exit the loop ends every session at once
        return session

    def close(self) -> None:
        """End the session; later steps are refused."""
        self.is_closed = True
        if self._finalizer is not None:
            self._finalizer()

    def check_model(self, model: ModelId) -> None:
        """BadRequestError unless these are sequences of this model: the hops of another one would go on with them."""
        if self._model is not None and self._model != model:
            raise BadRequestError(
                f"past_key_values holds sequences of {self._model}, but this model is {model}; "
                "pass what a call of this model returned, or nothing"
            )

    @property
    def journey(self) -> Any:
        """The session's way through the swarm (`route`, `replaced`), for people; None before the first step, or if there is none."""
        return getattr(self._session, "journey", None)

    @property
    def versions(self) -> tuple[int, ...]:
        """Of a model in training: the versions that have computed these sequences, in order; () = not known, or no such model."""
        return tuple(getattr(self.journey, "versions", ()))

    # --- what transformers tells it

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        chosen = tuple(int(index) for index in torch.as_tensor(indices).tolist())
        if self.rows is None or chosen == tuple(range(len(self.rows))):
            return
        if any(not -len(self.rows) <= index < len(self.rows) for index in chosen):
            raise BadRequestError(
                f"indices of sequences {list(chosen)[:8]} do not fit a cache of {counted(len(self.rows), 'sequence')}"
            )
        chosen = tuple(index % len(self.rows) for index in chosen)
        self.rows = [self.rows[index] for index in chosen]
        if self.ops and isinstance(self.ops[-1], Rows):  # one after the other is one
            before = self.ops.pop().indices  # type: ignore[union-attr]
            chosen = tuple(before[index] for index in chosen)
        self.ops.append(Rows(chosen))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.rows is None or repeats == 1:
            return
        self.rows = [length for length in self.rows for _ in range(repeats)]
        self.ops.append(Repeat(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens of every sequence (transformers passes minus a count, or 0)."""
        tokens = -tokens_to_remove
        if tokens < 0 or tokens > min(self.rows or [0]):
            raise BadRequestError(
                f"crop takes minus a number of tokens that every sequence has ({self.rows}), got {tokens_to_remove}"
            )
        if tokens == 0 or self.rows is None:
            return
        self.rows = [length - tokens for length in self.rows]
        self.columns -= tokens
        if self.ops and isinstance(self.ops[-1], Crop):
            tokens += self.ops.pop().tokens  # type: ignore[union-attr]
        self.ops.append(Crop(tokens))

    def reset(self) -> None:
        """Start over with no sequences, in a new session."""
        if self._finalizer is not None:
            self._finalizer()
        self._session = self._finalizer = self.rows = None
        self.columns, self.ops, self.is_closed = 0, [], False

    # --- what transformers asks it

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.columns + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.columns > 0

    @property
    def batch_size(self) -> int:
        return -1 if self.rows is None else len(self.rows)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise BadRequestError("keys and values stay at the hops; this cache holds only the lengths of its sequences")

    def fork(self) -> RemoteCache:
        """A second cache with the same sequences. Both continue and end independently, from any threads.

        It is a session of its own. If this one has not continued before the fork's first step, hops copy the sequences; else they compute
        them again, in one prefill.
        """
        with self._turn:
            twin = RemoteCache(self._open, self._model)
            twin.is_closed, twin._is_user_defined = self.is_closed, self._is_user_defined
            twin.columns, twin.rows, twin.ops = self.columns, None if self.rows is None else list(self.rows), list(self.ops)
            if self._session is not None and not self.is_closed:
                twin._own(self._session.fork())
            return twin

    def __deepcopy__(self, memo: object) -> RemoteCache:
        return self.fork()

    def __copy__(self) -> RemoteCache:
        """Not two objects that drive one session: neither could know what the other has fed."""
        return self.fork()

    def __repr__(self) -> str:
        return f"RemoteCache(lengths={self.rows}, columns={self.columns}, {'closed' if self.is_closed else 'open'})"
