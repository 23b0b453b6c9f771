"""A loaded unit: the one owner of its parameters.

Parameters have one owner. Modules belong to their readers: `read()` hands out a version's parameters, and each reader builds modules of its
own over them, so that an engine and a training step never meet in a module's state. A version that has a reader does not change:
`replace` and `write` make the next one. They write in place only if no version has a reader.

What a reader derives (engine, captured graphs, cost estimates, choice of kernels) lives as long as its reading, so a new version has none
of it. `bytes` counts all versions that are alive; the last reader of an old one frees it by `close`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeVar

from torch import Tensor

from protocols.errors import BadRequestError, InternalError, OverloadedError
from protocols.units import Unit
from protocols.weights_id import Weights
from swarm.models.sharing import check_fit, copy_into


class Holding(Protocol):
    """Loaded parameters, and how modules are built over them (`SpanParts`, `EndsModel`)."""

    def tensors(self) -> dict[str, Tensor]: ...

    def with_tensors(self, others: Mapping[str, Tensor]) -> Self: ...


H = TypeVar("H", bound=Holding)


class Reading(Generic[H]):
    """One reader's hold on one version, from `LoadedUnit.read` until `close`. Its parameters do not change in between."""

    def __init__(self, unit: LoadedUnit[H], weights: Weights, holding: H) -> None:
        self.weights, self.holding = weights, holding
        self._unit: LoadedUnit[H] | None = unit

    def close(self) -> None:
        """This reader uses the parameters no more. A second call changes nothing."""
        unit, self._unit = self._unit, None
        if unit is not None:
            unit._close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class LoadedUnit(Generic[H]):
    """The owner. All methods may be called from any thread; one that copies parameters takes as long as that."""

    def __init__(self, unit: Unit, holding: H, weights: Weights) -> None:
        self.unit = unit
        self._weights, self._holding = weights, holding
        self._readings: set[Reading[H]] = set()
        self._lock = threading.Lock()
        self._writer: Literal["beside", "in place"] | None = None
        self._is_broken = False

    @property
    def weights(self) -> Weights:
        """Of the newest version: what `read` gives."""
        return self._weights

    @property
    def num_readers(self) -> int:
        """Of all versions."""
        return len(self._readings)

    @property
    def bytes(self) -> int:
        """Of the parameters of all versions that are alive; what two of them share counts once."""
        with self._lock:
            holdings = {id(holding): holding for holding in (self._holding, *(reading.holding for reading in self._readings))}
        tensors = {id(tensor): tensor for holding in holdings.values() for tensor in holding.tensors().values()}
        return sum(tensor.nbytes for tensor in tensors.values())

    def added_bytes(self, num_bytes: int) -> int:
        """What a `replace` of tensors of `num_bytes` would newly take now: nothing if there is no reader."""
        return num_bytes if self._readings else 0

    def check(self, tensors: Mapping[str, Tensor], weights: Weights) -> None:
        """Raise what `replace` would raise about its arguments."""
        check_fit(self._holding.tensors(), tensors)
        _check_order(self._weights, weights)

    def read(self) -> Reading[H]:
        """Hold the newest version. OverloadedError while it is written in place; InternalError after such a writing failed."""
        with self._lock:
            if self._writer == "in place":
                raise OverloadedError(f"{self.unit} is being written: try again in a moment, or a replica")
            self._check_whole()
            reading = Reading(self, self._weights, self._holding)
            self._readings.add(reading)
            return reading

    def replace(self, tensors: Mapping[str, Tensor], weights: Weights) -> None:
        """From now on `read` gives `weights`: these tensors in place of those of the same names, and the others as they were.

        If any version has a reader, the new tensors get memory of their own (`added_bytes`); else they are written in place. The
        caller's tensors are copied. BadRequestError (a name, shape or dtype that does not fit, or weights that do not follow) and
        MemoryError leave all as it was.
        """
        self.check(tensors, weights)
        with self._writing(weights, tensors) as (own, is_filled):
            for name in () if is_filled else tensors:
                copy_into(own[name], tensors[name])

    def restore(self, reading: Reading[H]) -> None:
        """From now on `read` gives what `reading` holds, an older version. Nothing changes if it is closed."""
        with self._lock:
            if reading in self._readings:
                self._weights, self._holding = reading.weights, reading.holding

    @contextmanager
    def write(self, weights: Weights) -> Iterator[dict[str, Tensor]]:
        """Write the next version's numbers, in place, into the tensors that this gives: what an optimizer step does.

        At the end of the block `read` gives `weights`. If any version has a reader, the tensors are copies of all of them; else they
        are the very parameters. A block that raises leaves nothing behind in the first case; in the second the unit is broken: `read`
        raises InternalError until all of its tensors were replaced.
        """
        with self._writing(weights, None) as (own, _):
            yield own

    @contextmanager
    def _writing(self, weights: Weights, tensors: Mapping[str, Tensor] | None) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """One writer at a time, of `tensors` (None: of any). Gives the next version's, and whether they hold those numbers already."""
        in_place, holding = self._begin(weights, tensors), self._holding
        try:
            if not in_place:
                holding = holding.with_tensors(holding.tensors() if tensors is None else tensors)
            yield holding.tensors(), not in_place
        except BaseException:
            self._end(is_broken=in_place)
            raise
        self._end(is_broken=False, version=(weights, holding))

    def _begin(self, weights: Weights, tensors: Mapping[str, Tensor] | None) -> bool:
        """True: in place. No version has a reader, and none gets one before `_end`."""
        with self._lock:
            if self._writer is not None:
                raise OverloadedError(f"{self.unit} is being written: one writer at a time")
            if tensors is None or tensors.keys() != self._holding.tensors().keys():
                self._check_whole()
            _check_order(self._weights, weights)
            self._writer = "beside" if self._readings else "in place"
            return self._writer == "in place"

    def _end(self, *, is_broken: bool, version: tuple[Weights, H] | None = None) -> None:
        with self._lock:
            self._writer, self._is_broken = None, is_broken
            if version is not None:
                self._weights, self._holding = version

    def _check_whole(self) -> None:
        if self._is_broken:
            raise InternalError(
                f"{self.unit} holds no version of its weights: writing in place failed; replace all of its tensors"
            )

    def _close(self, reading: Reading[H]) -> None:
        with self._lock:
            self._readings.discard(reading)


def _check_order(before: Weights, after: Weights) -> None:
    if before.model != after.model or before == after:
        raise BadRequestError(f"other weights of {before.model} can follow {before}, got {after}")
