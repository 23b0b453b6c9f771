"""Hops that lie to a session's client.

They are real gRPC servers beside the toy nodes of `tests/swarm/inference/toy.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocols import inference, services
from protocols.errors import BY_CODE, SwarmError
from protocols.inference import Expect, Grant, HopLost, Open, Reroute, Step
from protocols.progress import Progress, ProgressRequest
from swarm.rpc.call import Call
from swarm.rpc.server import RpcServer
from swarm.rpc.stream import Stream
from tests.hosting import loaded
from tests.swarm.inference.probe import FakeHop
from tests.swarm.inference.toy import Records, ToySwarm

LIES = ("has no such call", "idle", "busy", "received nothing", "sent it on", "knows no session", "mute")
"""What a swallower says when it is asked how far it is."""


@dataclass
class Swallower(FakeHop):
    """Answers hello, takes sessions, wants their steps, and keeps them."""

    lie: str = "idle"
    steps: int = 0
    """Steps that it has kept."""
    asked: int = 0
    """Times that it was asked how far it is."""
    on_open: Callable[[], None] = lambda: None
    """Called for each route that begins here."""
    _epochs: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        handlers = {
            services.SESSION.name: self._session,
            services.ATTACH.name: self._attach,
            services.HELLO.name: self._hello,
        }
        if self.lie != LIES[0]:
            handlers[services.PROGRESS.name] = self._progress
        self.server = RpcServer(self.identity, self.certificate, handlers)

    async def _session(self, stream: Stream, call: Call) -> None:
        while (data := await stream.receive()) is not None:
            message = inference.parse(data)
            if isinstance(message, Open | Reroute):
                await self._opened(stream, message.grant, message.index)
            elif isinstance(message, Step):
                self.steps += 1

    async def _opened(self, stream: Stream, grant: Grant, index: int) -> None:
        self.on_open()
        self._epochs[grant.session] = grant.epoch
        await stream.send(Expect(session=grant.session, epoch=grant.epoch, step=0).encode())

    async def _progress(self, request: bytes, call: Call) -> bytes:
        self.asked += 1
        epoch = self._epochs.get(ProgressRequest.parse(request).session, -1)
        words = {
            "idle": Progress(epoch=epoch, received=1),
            "busy": Progress(epoch=epoch, received=1, is_busy=True),
            "received nothing": Progress(epoch=epoch),
            "sent it on": Progress(epoch=epoch, received=1, computed=1, sent=1),
            "knows no session": Progress(),
        }
        if self.lie == "mute":
            await self._release.wait()
        return words.get(self.lie, Progress()).encode()


@dataclass
class Refuser(Swallower):
    """Ends every session with an error whose class and text it chooses, by the stream's end or by a message."""

    code: str = "bad_request"
    text: str = "go away"
    refusals: int = 0

    async def _opened(self, stream: Stream, grant: Grant, index: int) -> None:
        self.refusals += 1
        raise BY_CODE.get(self.code, SwarmError)(self.text)


class Modest(ToySwarm):
    """Its honest nodes say that their memory is nearly full, so that every route begins with the liars there are."""

    async def snapshot(self, model_name: str) -> Records:
        found = (await super().snapshot(model_name)).peers
        return Records(tuple(record if record.hosted[0].load.step_ms < 1 else loaded(record, free_tokens=1) for record in found))


@dataclass
class Accuser(Swallower):
    """Says of the hop below, which it has never dialled, that it is lost."""

    code: str = "peer_unreachable"
    text: str = "the hop below is gone"
    accusations: int = 0
    names: int = 1
    """How far below itself the hop is that it accuses."""

    async def _opened(self, stream: Stream, grant: Grant, index: int) -> None:
        await super()._opened(stream, grant, index)
        self.accusations += 1
        lost = HopLost(session=grant.session, epoch=grant.epoch, index=index + self.names, code=self.code, message=self.text)
        await stream.send(lost.encode())
