"""What the swarm sees of this node: its record, from `joining` to withdrawn, and its look at the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from node import choosing, neighbours
from node.config import NodeConfig
from node.liveness import Greeted
from node.serving.host import Host
from node.serving.worked import Worked
from protocols.ids import ModelId, Span
from protocols.records import MAX_ROUND_TRIPS, PeerRecord, ServedSpan
from protocols.units import ENDS, Blocks, Unit
from protocols.weights_id import Weights
from swarm.inference.grants import Served
from swarm.peer import Peer, software
from swarm.placement.members import Member


class Presence:
    """The record lists every host, and the span that is being loaded; each with its own state."""

    def __init__(self, config: NodeConfig, peer: Peer, model: ModelId, num_blocks: int) -> None:
        self.model, self.me, self.dtype = model, peer.peer_id, ""
        self.last_seen: choosing.Records = _Seen()
        self.hosts: list[Host] = []
        """The newest last; a draining one is listed until it has stopped."""
        self.joining: Span | None = None
        """The span that we are about to host."""
        self.stays = config.stays or config.blocks is not None
        self.capacity_blocks, self.block_ms = 0, 0.0
        """As in the record."""
        self._peer, self._num_blocks = peer, num_blocks
        self._greeted = Greeted(peer.ping)
        self._least_ms = 0.0
        """Milliseconds for a block that are believed at least."""
        self._record = PeerRecord(
            peer=peer.peer_id,
            name=config.name,
            software=software(),
            addresses=tuple(peer.addresses),
            certificate=peer.certificate,
            p2p_addresses=tuple(peer.multiaddrs),
            upload_bytes_s=config.upload_bytes_s,
        )

    async def look(self) -> list[choosing.Claim]:
        """What the others hold, or are about to; those that do not answer a hello hold nothing."""
        records = (await self._peer.directory.snapshot(self.model.name)).peers
        self.last_seen = _Seen(await self._greeted.answering([one for one in records if one.peer != self.me]))
        return choosing.claims(self.last_seen, self.model, self.me)

    @property
    def is_alone(self) -> bool:
        """Whether we know nobody, however peers were looked for."""
        return not self._peer.num_neighbours

    async def records(self) -> Sequence[PeerRecord]:
        """Everybody who announces the model now."""
        return (await self._peer.directory.snapshot(self.model.name)).peers

    def standings(self, records: Sequence[PeerRecord]) -> list[choosing.Standing]:
        """The others, as placement counts them; of a crowd MAX_PLANNED."""
        self._least_ms = choosing.least_ms(records, self.model)
        return choosing.planned(choosing.standings(records, self.model, self.dtype, self.me), self._peer.has_met)

    def worked(self) -> Worked:
        """What our hosts have computed since this was asked last."""
        return sum((host.runner.work.take() for host in self.hosts), Worked())

    def as_member(self, span: Span) -> Member:
        """Ourselves, were `span` ours."""
        record = self.record()
        hosted = next(one for one in record.blocks() if one.span == span)
        return choosing.as_member(record, hosted, self._least_ms)

    async def look_closely(self) -> list[PeerRecord]:
        """Those who host what comes right after our span."""
        return neighbours.successors(await self.records(), self.model, self.hosts[-1].served.span) if self.hosts else []

    async def join(self, span: Span | None) -> None:
        """Announce that we are about to host `span`; None: that we are not."""
        self.joining = span
        await self.tell()

    async def serve(self, host: Host) -> None:
        """Announce that we host it."""
        self.hosts.append(host)
        self.joining = None
        await self.tell()

    async def drop(self, host: Host) -> None:
        """Announce that we no longer host it."""
        self.hosts.remove(host)
        await self.tell()

    async def tell(self) -> None:
        """Push the record as it is now."""
        await self._peer.directory.announce(self.record, (self.model.name,))

    async def withdraw(self) -> None:
        """Take the announcement back, if there was one."""
        await self._peer.directory.withdraw()

    async def stop_serving(self) -> None:
        for host in self.hosts:
            await host.stop()

    def served(self, span: Span, hidden_size: int, beside: frozenset[Unit] = frozenset()) -> Served:
        """What sessions have to agree with."""
        return Served(
            peer=self.me,
            weights=Weights(self.model),
            blocks=Blocks.of(span),
            beside=beside,
            num_blocks=self._num_blocks,
            hidden_size=hidden_size,
            dtype=self.dtype,
        )

    def record(self) -> PeerRecord:
        """This node now."""
        trips = tuple(self._peer.round_trips_ms.items())[-MAX_ROUND_TRIPS:]
        record = replace(self._record, state="joining", reachable=self._peer.reachable, round_trips=trips)
        record = replace(record, capacity_blocks=self.capacity_blocks, block_ms=self.block_ms)
        spans = [
            self._span(host.served.span, "draining" if host.is_draining else "serving", host.served.beside >= ENDS)
            for host in reversed(self.hosts)
        ]
        if self.joining is not None:
            spans.append(self._span(self.joining, "joining"))
        if self.hosts:
            load = self.hosts[-1].load()
            record = replace(record, state="serving", free_tokens=load.free_tokens, queue=load.queue, step_ms=load.step_ms)
        return replace(record, spans=tuple(_as_the_record(span, record.state) for span in spans)).fitted()

    def _span(self, span: Span, state: str, ends: bool = False) -> ServedSpan:
        return ServedSpan(model=self.model, span=span, num_blocks=self._num_blocks, ends=ends, dtype=self.dtype, state=state)


def _as_the_record(served: ServedSpan, state: str) -> ServedSpan:
    """A span whose state is its record's does not say it again."""
    return replace(served, state="") if served.state == state else served


@dataclass(frozen=True, slots=True)
class _Seen:
    peers: Sequence[PeerRecord] = ()
