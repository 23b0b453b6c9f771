"""A swarm whose weights change, and each version's answers.

Real nodes in this process: servers, hosts, engines, the dispatcher, presence and `Replacer`; only the directory is a list. Embedding and
head are one small matrix at the client. An answer is a sequence of tokens, chosen greedily.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from node.config import NodeConfig
from node.device.thread import Device
from node.hosting.host_maker import HostMaker
from node.hosting.replacing import Replacer
from node.placement.presence import Presence
from node.serving.dispatcher import Dispatcher
from node.serving.handover import begin
from node.serving.host import Host
from protocols import services
from protocols.errors import ModelMismatchError, NoRouteError
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from protocols.units import Blocks, Unit
from protocols.weights_id import Weights
from swarm import places
from swarm.inference.client.session import Session, SessionConfig
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_parts
from swarm.models.parts import SpanParts
from swarm.models.span import SpanModule
from swarm.routing import path
from swarm.routing.router import Router
from swarm.rpc import tls
from swarm.rpc.pool import ChannelPool
from swarm.rpc.server import RpcServer
from swarm.streams.links import Links
from swarm.waiting import Waits
from tests.swarm.inference.toy import Records, ToyNode, ToySwarm, ask, new_identity

CONFIG = NodeConfig(model="toy", data_dir=places.data_dir({"HOME": "/h"}))
PLENTY = 1 << 40
VOCABULARY = 64


class Model:
    """A checkpoint and its versions; checks an answer against a single machine with one of them."""

    def __init__(self, directory: Path) -> None:
        self.checkpoint = open_checkpoint(directory)
        self.id = ModelId("toy", "d" * 64)
        self.num_blocks, self.hidden_size = self.checkpoint.num_blocks, self.checkpoint.hidden_size
        self.table = torch.randn(VOCABULARY, self.hidden_size, generator=torch.Generator().manual_seed(7))
        self._whole = self.load(Span(0, self.num_blocks))
        self._versions: dict[int, SpanModule] = {}

    def load(self, span: Span) -> SpanParts:
        return load_parts(self.checkpoint, span, dtype=torch.float32)[1]

    def weights(self, number: int) -> Weights:
        return Weights(self.id, number, hashlib.sha256(str(number).encode()).digest() if number else b"")

    def changes(self, span: Span, number: int) -> dict[str, Tensor]:
        """The matrices of version `number`, for the blocks of a span: new numbers, the same at every node."""
        own = {
            name: tensor
            for name, tensor in self._whole.tensors().items()
            if int(name.partition(".")[0]) in range(span.start, span.stop)
        }
        return {name: self._drawn(name, tensor, number) for name, tensor in own.items() if tensor.dim() >= 2}

    def _drawn(self, name: str, tensor: Tensor, number: int) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(f"{name} {number}".encode()).digest()[:6], "big")
        return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * 0.2

    @torch.inference_mode()
    def answers(self, number: int, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether a single machine gives this answer with version `number`: each token is its choice after those before."""
        if number not in self._versions:
            changed = self._whole.with_tensors(self.changes(Span(0, self.num_blocks), number)) if number else self._whole
            self._versions[number] = changed.cut(Span(0, self.num_blocks))
        outputs = self._versions[number](self.table[[*prompt, *tokens[:-1]]][None])[0, len(prompt) - 1 :]
        return [self.choose(output) for output in outputs] == list(tokens)

    def choose(self, hidden: Tensor) -> int:
        return int((self.table @ hidden.float()).argmax())


class HasAll:
    """A source whose weights are all here."""

    async def fetch(self, units: Sequence[Unit]) -> None: ...


class Node:
    """A node with one host, as `run_node` makes it."""

    def __init__(self, swarm: Swarm, span: Span, free_bytes: int, drain_s: float, keep: int = 0) -> None:
        self.swarm, self.span, self.identity = swarm, span, new_identity()
        self.directory, self.peer_id, self.reachable = self, self.identity.peer_id, True
        self.round_trips_ms: dict[PeerId, float] = {}
        certificate = tls.make(self.identity)
        self.certificate, self.multiaddrs, self.addresses = certificate.der, (), ()
        self.dispatcher, self.pool, self.device, self.swarm_name = Dispatcher(), ChannelPool(self.identity), Device(), "test"
        handlers = {**self.dispatcher.handlers(), services.HELLO.name: ToyNode._hello.__get__(self)}
        self.server = RpcServer(self.identity, certificate, handlers)
        self._free_bytes, self._drain_s, self._keep = free_bytes, drain_s, keep

    async def ping(self, record: PeerRecord) -> float:
        raise NotImplementedError

    async def announce(self, make_record: Any, models: Any) -> None:
        self.swarm.records[self.peer_id] = PeerRecord.parse(make_record().encode())

    async def start(self) -> None:
        model = self.swarm.model
        self.addresses = (f"127.0.0.1:{await self.server.start()}",)
        self.presence = Presence(CONFIG, self, model.id, model.num_blocks)  # type: ignore[arg-type]
        self.presence.dtype = "float32"
        self._maker = HostMaker(
            source=HasAll(), checkpoint=model.checkpoint, presence=self.presence, device="cpu", device_thread=self.device,  # type: ignore[arg-type]
            num_to_load=1, dtype="float32", ends=False, on_event=lambda event: None, waits=Waits(),
        )  # fmt: skip
        host = await self._maker.make(self.span)
        assert host.unit_engines is not None
        self.unit = host.unit_engines.units.blocks
        await host.start(self.pool)
        await begin(host, self.dispatcher, self.presence)
        self.replacer = Replacer(
            host, renew=self._renew, dispatcher=self.dispatcher, presence=self.presence, free_bytes=lambda: self._free_bytes,
            drain_s=self._drain_s, keep=self._keep,
        )  # fmt: skip

    async def _renew(self, host: Host) -> Host:
        renewed = await self._maker.renew(host)
        await renewed.start(self.pool)
        assert renewed.budget_bytes == host.budget_bytes, "a version takes the memory that the one before had"
        return renewed

    async def replace(self, number: int) -> None:
        model = self.swarm.model
        changes = await asyncio.to_thread(model.changes, self.span, number)
        await self.replacer.replace({Blocks.of(self.span): changes}, model.weights(number))

    async def stop(self) -> None:
        await self.replacer.close()
        await self.server.stop(0)
        await self.presence.stop_serving()
        await self.pool.close()


@dataclass
class Answer:
    """The tokens that a session received, and their weights."""

    prompt: list[int]
    number: int
    tokens: list[int]
    num_replaced: int
    """Hops that were lost and replaced during the answer."""


class Swarm:
    """Nodes, and one client."""

    def __init__(self, model: Model) -> None:
        self.model, self.records, self.nodes = model, dict[PeerId, PeerRecord](), list[Node]()
        self.num_lost = 0
        """Sessions that were begun again with newer weights, because no peer had the old ones any more."""
        self.tokens: Counter[int] = Counter()
        """Number of tokens received, by version."""
        self.answers: Counter[int] = Counter()
        """Number of whole answers, by version."""
        self.told, self.goes_on = asyncio.Event(), asyncio.Event()
        self.goes_on.set()
        """Cleared, no answer goes on after its next token."""
        self._toys, self._routers = ToySwarm(), dict[Weights, Router]()
        self._newest: Router | None = None

    async def snapshot(self, model_name: str) -> Records:
        return Records(tuple(self.records.values()))

    async def add(self, span: Span, free_bytes: int = PLENTY, drain_s: float = 10.0, keep: int = 0) -> Node:
        node = Node(self, span, free_bytes, drain_s, keep)
        await node.start()
        self.nodes.append(node)
        return node

    def newest(self) -> Weights | None:
        """The newest weights that have a complete route now; None if there are none."""
        spans: dict[Weights, list[Span]] = {}
        for record in self.records.values():
            for one in record.hosted:
                if one.is_blocks and record.state_of(one) == "serving":
                    spans.setdefault(one.weights, []).append(one.span)
        whole = [weights for weights, found in spans.items() if not path.missing(found, self.model.num_blocks)]
        return max(whole, key=lambda weights: weights.version, default=None)

    async def _until_routed(self) -> Weights:
        async with asyncio.timeout(30):
            while (weights := self.newest()) is None:  # noqa: ASYNC110  (records change in many ways)
                await asyncio.sleep(0.01)
        return weights

    def _session(self, weights: Weights) -> Session:
        if weights not in self._routers:
            self._routers[weights] = Router(self, self._toys._ping, weights, self.model.num_blocks)
        config = SessionConfig(route_timeout_s=1.0)
        return Session(self._routers[weights], Links(self._toys.pool), self._toys.identity, config)

    def session(self, follow: bool = False) -> Session:
        """A session as of a model in training: it takes the newest version itself."""
        base = self.model.weights(0)
        if self._newest is None:
            self._newest = Router(self, self._toys._ping, base, self.model.num_blocks, takes_newest=True)
        config = SessionConfig(route_timeout_s=10.0, follow=follow)
        return Session(self._newest, Links(self._toys.pool), self._toys.identity, config)

    async def next_tokens(self, session: Session, fed: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens of a session, after it has been fed some."""
        given, tokens = self.model.table[list(fed)], list[int]()
        while len(tokens) < num_tokens:
            output = await ask(session, (), [len(given)], given)
            tokens.append(self.model.choose(output[-1]))
            given = self.model.table[tokens[-1:]]
        return tokens

    async def ask(self, prompt: list[int], num_tokens: int, pause_s: float = 0.0) -> Answer:
        """A whole answer of one session; a session that is lost is begun again."""
        while True:
            weights = await self._until_routed()
            session = self._session(weights)
            try:
                tokens = await self._told(session, prompt, num_tokens, weights.version, pause_s)
                self.answers[weights.version] += 1
                self.told.set()
                return Answer(prompt, weights.version, tokens, session.replaced)
            except (NoRouteError, ModelMismatchError):
                self.num_lost += 1
            finally:
                await session.close()

    async def _told(self, session: Session, prompt: list[int], num_tokens: int, version: int, pause_s: float) -> list[int]:
        given, tokens = self.model.table[prompt], list[int]()
        while len(tokens) < num_tokens:
            output = await ask(session, (), [len(given)], given)
            tokens.append(self.model.choose(output[-1]))
            given = self.model.table[tokens[-1:]]
            self.tokens[version] += 1
            self.told.set()
            await asyncio.sleep(pause_s)
            await self.goes_on.wait()
        return tokens

    async def until_told(self, version: int, num_tokens: int) -> None:
        """Wait until a version has answered so many tokens."""
        await self._until(lambda: self.tokens[version] >= num_tokens)

    async def until_answered(self, version: int) -> None:
        """Wait until a version has given a whole answer."""
        await self._until(lambda: self.answers[version] > 0)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not is_so():
                self.told.clear()
                await self.told.wait()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()
        await self._toys.stop()


@asynccontextmanager
async def swarm_of(model: Model) -> AsyncIterator[Swarm]:
    swarm = Swarm(model)
    try:
        yield swarm
    finally:
        await swarm.stop()


@dataclass
class Verdict:
    """How many answers each version gave."""

    num_answers: int = 0
    mixed: list[Answer] = field(default_factory=list)
    """Answers that differ from those of the version that the session began with."""
    shared: int = 0
    """Answers that another version gives as well: they prove nothing."""
    by_version: Counter[int] = field(default_factory=Counter)
    num_replaced: int = 0


def judge(model: Model, answers: Sequence[Answer], last: int) -> Verdict:
    """Compare with the answers of a single machine with each version."""
    verdict = Verdict(len(answers))
    for answer in answers:
        givers = [number for number in range(last + 1) if model.answers(number, answer.prompt, answer.tokens)]
        if answer.number not in givers:
            verdict.mixed.append(answer)
        verdict.shared += len(givers) > 1
        verdict.by_version[answer.number] += 1
        verdict.num_replaced += answer.num_replaced
    return verdict
