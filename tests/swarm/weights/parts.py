"""A model of random bytes, and peers that give it.

The peers have real sockets; some of them lie, stop or send without end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protocols import pieces, services
from protocols.identity import Identity, from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.weights import PIECE_BYTES, FileEntry, Manifest, TensorEntry, canonical_config, tensor_root
from swarm.rpc import Call, ChannelPool, Handlers, RpcServer, Stream, tls
from swarm.weights.cache import ModelCache
from swarm.weights.shard_file import Place
from swarm.weights.shelf import Shelf
from swarm.weights.uploader import Uploader
from tests.hosting import hosted

ME = from_seed(bytes([99]) * 32)
WHOLE = Span(0, 4)
CONFIG = canonical_config({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4})


@dataclass
class Model:
    """Bytes of every tensor and file, and the manifest of them."""

    tensors: dict[str, bytes]
    files: dict[str, bytes]
    manifest: Manifest
    model: ModelId
    directory: Path

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.tensors.values()))

    def shelf(self, holds: Callable[[str], bool] = lambda name: True) -> Shelf:
        places, at = {}, 0
        for number, entry in enumerate(self.manifest.entries):
            if holds(entry.name):
                places[number] = Place(self.directory / "data", at)
            at += entry.num_bytes
        return Shelf(self.model, self.manifest, places.get, self.directory)

    def check(self, cache: ModelCache, names: Sequence[str] | None = None) -> None:
        """Assert that the cache holds exactly these bytes."""
        infos = cache.layout.infos(cache.directory)
        for name in names or self.tensors:
            info = infos[name]
            with info.file.open("rb") as file:
                file.seek(info.start)
                assert file.read(info.stop - info.start) == self.tensors[name], name


def make_model(
    directory: Path, block_bytes: int = 3 * PIECE_BYTES + 40, blocks: int = 4, end_bytes: int = PIECE_BYTES // 2
) -> Model:
    """Blocks of one large and one small tensor; an embedding, a norm, and an empty tensor."""
    draw = random.Random(7)
    sizes = {
        f"model.layers.{block}.{part}.weight": size
        for block in range(blocks)
        for part, size in (("mlp", block_bytes), ("norm", 64))
    }
    sizes |= {"model.embed_tokens.weight": end_bytes, "model.norm.weight": 64, "model.empty": 0}
    tensors = {name: draw.randbytes(size) for name, size in sorted(sizes.items())}
    files = {"tokenizer.json": draw.randbytes(2 * PIECE_BYTES + 5), "generation_config.json": b"{}"}
    files["additional_chat_templates/tool_use.jinja"] = b"{{ messages }}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "data").write_bytes(b"".join(tensors.values()))
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    entries = tuple(TensorEntry(name, "U8", (len(data),), root(data)) for name, data in tensors.items())
    listed = tuple(FileEntry(name, hashlib.sha256(content).digest()) for name, content in sorted(files.items()))
    manifest = Manifest(entries, CONFIG, listed)
    return Model(tensors, files, manifest, ModelId("tiny", manifest.digest), directory)


def root(data: bytes) -> bytes:
    return tensor_root(hashlib.sha256(data[at : at + PIECE_BYTES]).digest() for at in range(0, len(data), PIECE_BYTES))


class Liar(Uploader):
    """Flips a bit in every piece after the first `honest` ones."""

    honest = 0

    async def _send(self, stream: Stream, frame: bytes) -> None:
        answer = pieces.parse_answer(frame)
        if isinstance(answer, pieces.Piece):
            self.honest -= 1
            if self.honest < 0:
                data = bytearray(answer.data)
                data[len(data) // 2] ^= 1
                frame = pieces.Piece(tensor=answer.tensor, piece=answer.piece, data=bytes(data)).encode()
        await super()._send(stream, frame)


class Scripted(Uploader):
    """Answers every question with what `answers` gives for it (frames), in place of the truth."""

    def __init__(self, answers: Callable[[pieces.Request], Sequence[bytes] | None]) -> None:
        super().__init__()
        self.answers = answers

    async def give(self, stream: Stream, call: Call) -> None:
        while (data := await stream.receive()) is not None:
            for frame in self.answers(pieces.parse_request(data)) or ():
                await stream.send(frame)


class Paused(Uploader):
    """Stops after so many pieces, until `release` is set."""

    def __init__(self, pieces_before: int) -> None:
        super().__init__()
        self.left = pieces_before
        self.has_stopped, self.release = asyncio.Event(), asyncio.Event()

    async def _send(self, stream: Stream, frame: bytes) -> None:
        if isinstance(pieces.parse_answer(frame), pieces.Piece):
            self.left -= 1
            if self.left < 0:
                self.has_stopped.set()
                await self.release.wait()
        await super()._send(stream, frame)


@dataclass
class Giver:
    """A running server of weights."""

    server: RpcServer
    uploader: Uploader
    record: PeerRecord


@dataclass
class LocalSwarm:
    """Givers, and a peer that fetches."""

    pool: ChannelPool
    givers: list[Giver] = field(default_factory=list)

    async def start(
        self, model: Model, uploader: Uploader | None = None, span: Span = WHOLE, shelf: Shelf | None = None
    ) -> Giver:
        identity: Identity = from_seed(bytes([len(self.givers) + 1]) * 32)
        uploader, certificate = uploader or Uploader(), tls.make(identity)
        uploader.add(shelf or model.shelf())
        handlers: Handlers = {
            services.PIECES.name: lambda stream, call: uploader.give(stream, call),
            services.MANIFEST.name: uploader.give_manifest,
        }
        server = RpcServer(identity, certificate, handlers)
        port = await server.start()
        served = hosted(model.model, span, 4)
        record = PeerRecord(peer=identity.peer_id, addresses=(f"127.0.0.1:{port}",), certificate=certificate.der, hosted=served)
        giver = Giver(server, uploader, record)
        self.givers.append(giver)
        return giver

    async def sources(self) -> list[PeerRecord]:
        return [giver.record for giver in self.givers]


@contextlib.asynccontextmanager
async def local_swarm() -> AsyncIterator[LocalSwarm]:
    made = LocalSwarm(ChannelPool(ME))
    try:
        yield made
    finally:
        await made.pool.close()
        for giver in made.givers:
            await giver.server.stop()
