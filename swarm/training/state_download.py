"""Downloads the state of units from peers, several units at once.

What a source sends is checked before it costs anything: unit, version, chain and form first, then memory is taken for what the receiver
itself expects, then each message, and at the end the digest and that all values are finite. A source that dies, lies, is busy, or sends
nothing for STALL_S costs one attempt at the next source. A digest proves a whole copy, not an honest one: replicas are compared by chain
(`averaging`), and a run whose members lie about their state needs audits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import torch

from protocols import services, state
from protocols.errors import (
    MAX_QUOTED,
    BadRequestError,
    DeadlineError,
    NoRouteError,
    OverloadedError,
    PeerUnreachableError,
    SwarmError,
)
from protocols.ids import ModelId, PeerId, short_peer
from protocols.records import PeerRecord
from protocols.state import Form, StateHeader, StatePart, StateRequest
from protocols.units import Unit
from swarm.asking import answers
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream
from swarm.training.snapshot import PARAMETER, UnitSnapshot
from swarm.weights.source import LyingSourceError, connected

log = logging.getLogger(__name__)

STALL_S = 5.0
"""A source that owes bytes and sends none for so long is given up."""

FIRST_S = 60.0
"""It may take so long until the header comes: the copy waits for the device, and is hashed (1 GB a second or more)."""

SLOWEST_BYTES_S = 32 << 10
"""All of a unit must come within FIRST_S and the time that it takes at this rate; else a source could hold us up by a byte at a time."""

PAUSE_S = 0.5
ROUNDS = 20
"""Sources that are busy are asked again after PAUSE_S, at most so often."""

AT_ONCE = 4
"""Units that are fetched at once."""

MAX_KINDS = 4
"""Kinds of optimizer state that `trained_form` takes."""

CheckForm = Callable[[Form], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One unit's state, and who may have it."""

    unit: Unit
    version: int | None
    """None: the newest that the source has."""
    chain: bytes | None = None
    """What the chain must be; None = any, for the newest version."""
    check: CheckForm
    """Raises BadRequestError for a form that the receiver does not expect: `same_form`, `trained_form`."""
    sources: Sequence[PeerRecord]
    """In the order of preference. Units that are fetched at once are spread over them."""


def same_form(own: Form) -> CheckForm:
    """Names, dtypes and shapes must be those of the receiver's own unit."""

    def check(form: Form) -> None:
        if form != own:
            ours, theirs = set(own.tensors), set(form.tensors)
            odd = min(ours ^ theirs)
            side = "here" if odd in ours else "there"
            raise BadRequestError(f"of the state's tensors {odd.name!r} {odd.dtype} {list(odd.shape)} is only {side}")

    return check


def trained_form(parameters: Form) -> CheckForm:
    """Parameters as these, and beside them at most MAX_KINDS kinds of optimizer state, each tensor with the shape of its parameter or
    none: for a receiver that has no optimizer."""
    stored = {tensor.name.partition("/")[2]: tensor for tensor in parameters.tensors}

    def check(form: Form) -> None:
        kinds = Form(tuple(tensor for tensor in form.tensors if tensor.name.startswith(f"{PARAMETER}/")))
        same_form(parameters)(kinds)
        others = {tensor.name.partition("/")[0] for tensor in form.tensors} - {PARAMETER}
        if len(others) > MAX_KINDS:
            raise BadRequestError(f"the state has {len(others)} kinds of optimizer state, expected at most {MAX_KINDS}")
        for tensor in form.tensors:
            parameter = stored.get(tensor.name.partition("/")[2])
            if parameter is None or tensor.shape not in (parameter.shape, ()):
                raise BadRequestError(
                    f"the state has {tensor.name!r} {list(tensor.shape)}, which is no moment of a parameter here"
                )

    return check


async def download(
    pool: ChannelPool, run: ModelId, wanted: Iterable[Wanted], *, at_once: int = AT_ONCE, stall_s: float = STALL_S
) -> AsyncGenerator[UnitSnapshot, None]:
    """Each unit's state as soon as it has come; at most `at_once` are in memory beside the one that is handed out.

    NoRouteError names a unit that no source gives, with each one's reason; what was handed out before stays good. Use `aclosing`.
    """
    fetcher = _Fetcher(pool, run, stall_s)
    async with aclosing(answers(wanted, fetcher.fetch, at_once)) as found:
        async for _, snapshot in found:
            if isinstance(snapshot, SwarmError):
                raise snapshot
            yield snapshot


class _Fetcher:
    def __init__(self, pool: ChannelPool, run: ModelId, stall_s: float) -> None:
        self._pool, self._run, self._stall_s = pool, run, stall_s
        self._running: Counter[PeerId] = Counter()

    async def fetch(self, wanted: Wanted) -> UnitSnapshot | SwarmError:
        """The state from the first source that gives it, the least busy one first."""
        left, failures = list(wanted.sources), dict[PeerId, SwarmError]()
        for _ in range(ROUNDS):
            busy = []
            while left:
                source = min(left, key=lambda one: self._running[one.peer])
                left.remove(source)
                try:
                    return await self._fetch_from(wanted, source)
                except SwarmError as error:
                    log.info("state of %s from %s: %s", wanted.unit, short_peer(source.peer), error)
                    failures[source.peer] = error
                    if isinstance(error, OverloadedError):
                        busy.append(source)
            if not busy:
                break
            left = busy
            await asyncio.sleep(PAUSE_S)
        reasons = (
            "; ".join(f"{short_peer(peer)}: {str(error)[:MAX_QUOTED]}" for peer, error in failures.items())
            or "no peer is known to have it"
        )
        version = "the newest version" if wanted.version is None else f"version {wanted.version}"
        return NoRouteError(f"no peer gave the state of {wanted.unit} at {version}: {reasons}"[:1_500])

    async def _fetch_from(self, wanted: Wanted, source: PeerRecord) -> UnitSnapshot:
        self._running[source.peer] += 1
        stream: Stream | None = None
        try:
            channel = await connected(self._pool, source)
            stream = await channel.stream(services.STATE)
            await stream.send(StateRequest(run=self._run, units=(wanted.unit,), version=wanted.version).encode())
            return await _Receiving(stream, self._stall_s).snapshot(wanted)
        finally:
            self._running[source.peer] -= 1
            if stream is not None:
                stream.cancel()


class _Receiving:
    """One unit's state as it comes."""

    def __init__(self, stream: Stream, stall_s: float) -> None:
        self._stream, self._stall_s = stream, stall_s

    async def snapshot(self, wanted: Wanted) -> UnitSnapshot:
        """Raises LyingSourceError for content that is not what was asked for, DeadlineError if nothing comes."""
        header = await self._answer(FIRST_S)
        if not isinstance(header, StateHeader):
            raise LyingSourceError("it sent bytes of a state without its header")
        _check(header, wanted)
        limit_s = FIRST_S + header.form.num_bytes / SLOWEST_BYTES_S
        try:
            async with asyncio.timeout(limit_s):
                data, digest = await self._content(header)
        except TimeoutError:
            raise DeadlineError(f"it sent less than {SLOWEST_BYTES_S >> 10} KiB a second of the state") from None
        if digest != header.digest:
            raise LyingSourceError(f"the digest of what it sent is {digest.hex()[:12]}, not {header.digest.hex()[:12]}")
        found = UnitSnapshot.received(header, data)
        if odd := await asyncio.to_thread(found.first_odd):
            raise LyingSourceError(f"its {odd!r} holds NaN or an infinity")
        return found

    async def _content(self, header: StateHeader) -> tuple[torch.Tensor, bytes]:
        """The bytes and their digest. Memory is taken once, for a form that was checked."""
        data = torch.empty(header.form.num_bytes, dtype=torch.uint8)
        place = memoryview(data.numpy())  # type: ignore[arg-type]  # an array is a buffer
        found = state.state_hash(header.unit, header.version, header.chain, header.form)

        def take(at: int, part: bytes | memoryview) -> None:
            place[at : at + len(part)] = part
            found.update(part)

        at = 0
        while at < len(place):
            part = await self._answer(self._stall_s)
            if not isinstance(part, StatePart) or part.offset != at or at + len(part.data) > len(place):
                raise LyingSourceError(f"it sent something else where byte {at} of {len(place)} was due")
            await asyncio.to_thread(take, at, part.data)
            at += len(part.data)
        digest: bytes = found.digest()
        return data, digest

    async def _answer(self, limit_s: float) -> StateHeader | StatePart:
        try:
            async with asyncio.timeout(limit_s):
                data = await self._stream.receive()
        except TimeoutError:
            raise DeadlineError(f"it sent nothing of the state for {limit_s:.1f} s") from None
        if data is None:
            raise PeerUnreachableError("it ended the stream before all of the state had come")
        try:
            return state.parse_answer(data)
        except BadRequestError as error:
            raise LyingSourceError(f"it sent no answer about state: {error}") from None


def _check(header: StateHeader, wanted: Wanted) -> None:
    if header.unit != wanted.unit or wanted.version not in (None, header.version):
        raise LyingSourceError(f"it sent {header.unit} at version {header.version}, not {wanted.unit} at {wanted.version}")
    if wanted.chain not in (None, header.chain):
        raise LyingSourceError(f"its chain of version {header.version} is another one than the other replicas have")
    try:
        wanted.check(header.form)
    except BadRequestError as error:
        raise LyingSourceError(str(error)) from None
