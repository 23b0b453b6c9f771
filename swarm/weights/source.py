"""One source of a download: a stream of questions and answers.

Each answer is checked against the manifest before it is passed on.

Whatever does not fit raises `LyingSourceError`: such a peer is not asked again in this download.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Self, TypeVar

from protocols import pieces, services
from protocols.errors import BadRequestError, DeadlineError, PeerUnreachableError, SwarmError
from protocols.ids import ModelId, short_peer
from protocols.records import PeerRecord
from protocols.weights import PIECE_BYTES, Manifest
from swarm.rpc.pool import ChannelPool, PeerChannel
from swarm.rpc.stream import Stream
from swarm.weights.bitmap import Bitmap
from swarm.weights.planner import NextRequest
from swarm.weights.source_state import Held

STALL_S = 30.0
"""A source that owes an answer and sends nothing for so long is given up; with the slowest upload we take, a piece comes every 16 s."""

CONNECT_S = 2.0
"""A peer answers at one of its addresses within this, or another one is asked."""

T = TypeVar("T")


class LyingSourceError(SwarmError):
    """A peer sent what is not in the model: a wrong hash, length or number. Never crosses the wire."""

    code = "lying_source"
    try_another_peer = True


class SlowSourceError(SwarmError):
    """A peer sent too little while others waited for its place. Never crosses the wire."""

    code = "slow_source"
    try_another_peer = True


class Source:
    """An open stream to one peer. `num_bytes` counts all that came."""

    def __init__(self, peer: PeerRecord, stream: Stream, model: ModelId, manifest: Manifest, stall_s: float) -> None:
        self.peer, self.name = peer.peer, short_peer(peer.peer)
        self.num_bytes = 0
        self._stream, self._model, self._manifest, self._stall_s = stream, model, manifest, stall_s

    @classmethod
    async def open(
        cls,
        pool: ChannelPool,
        peer: PeerRecord,
        model: ModelId,
        manifest: Manifest,
        stall_s: float = STALL_S,
        connect_s: float = CONNECT_S,
    ) -> Self:
        """Dial, and open the stream; nothing has been asked yet. Raises where the peer is not there within `connect_s`, or refuses."""
        channel = await connected(pool, peer, connect_s)
        return cls(peer, await channel.stream(services.PIECES), model, manifest, stall_s)

    def close(self) -> None:
        self._stream.cancel()

    # --- asking

    async def holdings(self) -> Held:
        """The tensors that it says it has, whole or in part. LyingSourceError if they are not of this model, or one is said twice."""
        await self._stream.send(pieces.WeightsRequest(model=self._model).encode())
        answer = await self._expect(pieces.Holdings)
        try:
            return self._held(answer)
        except BadRequestError as error:
            size = len(answer.bits) + len(answer.partial)
            raise LyingSourceError(f"peer {self.name} says in {size} bytes what it has: {error}") from None

    def _held(self, answer: pieces.Holdings) -> Held:
        entries = self._manifest.entries
        whole = Bitmap(len(entries), answer.bits)
        held: dict[int, int | None] = {tensor: None for tensor in range(len(entries)) if tensor in whole}
        for tensor, bits in pieces.parse_partial(answer.partial, entries).items():
            if tensor in held:
                raise BadRequestError(f"tensor {tensor} is said to be here whole, and in part")
            held[tensor] = Bitmap(entries[tensor].num_pieces, bits).mask
        return held

    async def ask(self, ask: NextRequest) -> None:
        """Request hashes and pieces; the answers come by `receive`, in this order."""
        if ask.hashes:
            await self._stream.send(pieces.HashesRequest(tensors=ask.hashes).encode())
        if ask.runs:
            await self._stream.send(pieces.PiecesRequest(runs=ask.runs).encode())

    async def receive(self) -> pieces.Hashes | pieces.Piece:
        """The next answer to `ask`: its lengths are right, its hashes still unproven."""
        answer = await self._answer()
        if isinstance(answer, pieces.Hashes) and answer.tensor < len(self._manifest.entries):
            if len(answer.hashes) == 32 * self._manifest.entries[answer.tensor].num_pieces:
                return answer
        elif isinstance(answer, pieces.Piece) and answer.tensor < len(self._manifest.entries):
            entry = self._manifest.entries[answer.tensor]
            if answer.piece < entry.num_pieces and len(answer.data) == entry.piece_bytes(answer.piece):
                return answer
        raise LyingSourceError(f"peer {self.name} sent {_described(answer)}, which this model does not have")

    async def file(self, number: int, write: Callable[[memoryview | bytes], object], on_part: Callable[[], None]) -> None:
        """Hand the content of a file to `write`, part by part, of which only the return of this call proves that they are right.

        LyingSourceError where its hash is another, or another part comes than is due. write: runs in a thread. on_part: called after each.
        """
        await self._stream.send(pieces.FileRequest(file=number).encode())
        found, at, size = hashlib.sha256(), 0, -1
        while at != size:
            part = await self._expect(pieces.FilePart)
            size = part.size if size < 0 else size
            due = min(PIECE_BYTES, size - at)  # all parts are full but the last: a file does not come byte by byte
            if (part.file, part.size, part.offset, len(part.data)) != (number, size, at, due):
                raise LyingSourceError(f"peer {self.name} sent {_described(part)} where byte {at} of file {number} was due")
            found.update(part.data)
            await asyncio.to_thread(write, part.data)
            at += due
            on_part()
        entry = self._manifest.files[number]
        if found.digest() != entry.sha256:
            raise LyingSourceError(f"peer {self.name} sent another {entry.name} than this model has")

    async def _expect(self, kind: type[T]) -> T:
        answer = await self._answer()
        if not isinstance(answer, kind):
            raise LyingSourceError(f"peer {self.name} sent {_described(answer)}, expected {kind.__name__}")
        return answer

    async def _answer(self) -> pieces.Answer:
        try:
            async with asyncio.timeout(self._stall_s):
                data = await self._stream.receive()
        except TimeoutError:
            raise DeadlineError(f"peer {self.name} sent nothing of the weights for {self._stall_s:.0f} s") from None
        if data is None:
            raise PeerUnreachableError(f"peer {self.name} ended the stream of weights")
        self.num_bytes += len(data)
        try:
            return pieces.parse_answer(data)
        except BadRequestError as error:
            raise LyingSourceError(f"peer {self.name} sent no answer about weights: {error}") from None


async def connected(pool: ChannelPool, peer: PeerRecord, connect_s: float = CONNECT_S) -> PeerChannel:
    """A channel to that very peer; PeerUnreachableError if no address of it answers within `connect_s`."""
    try:
        async with asyncio.timeout(connect_s):
            return await pool.channel(peer.peer, peer.addresses, peer.certificate)
    except TimeoutError:
        raise PeerUnreachableError(f"peer {short_peer(peer.peer)} did not answer within {connect_s:.0f} s") from None


def _described(answer: pieces.Answer) -> str:
    match answer:
        case pieces.Piece():
            return f"piece {answer.piece} of tensor {answer.tensor} with {len(answer.data)} bytes"
        case pieces.Hashes():
            return f"{len(answer.hashes)} bytes of hashes of tensor {answer.tensor}"
        case pieces.FilePart():
            return f"{len(answer.data)} bytes at {answer.offset} of file {answer.file}"
    return "holdings"
