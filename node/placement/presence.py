"""What the swarm and this node know of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.config import NodeConfig
from node.placement import neighbours, span_choice
from node.placement.announcing import Announcement
from node.placement.liveness import Greeted
from node.serving.host import Host
from node.serving.worked import Worked
from protocols.hosted import NO_LOAD, Hosted, Load
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.units import Blocks, Unit
from protocols.weights_id import Weights
from swarm.inference.hop.grants import Served
from swarm.peer.peer import Peer
from swarm.placement.members import Member


class Presence:
    """Every host of the model, and the span that is being loaded, each with its own state; from `joining` to withdrawn."""

    def __init__(
        self, config: NodeConfig, peer: Peer, model: ModelId, num_blocks: int, announcement: Announcement | None = None
    ) -> None:
        """announcement: the record of a node that serves several models; None = one of its own."""
        self.model, self.weights, self.me, self.dtype = model, Weights(model), peer.peer_id, ""
        self.last_seen: span_choice.Records = _Seen()
        self.hosts: list[Host] = []
        """The newest last; a draining one is listed until it has stopped."""
        self.joining: Span | None = None
        """The span that we are about to host."""
        self.roles: tuple[Role, ...] = ()
        """What this node does in the training of the model."""
        self.stays = config.stays or config.blocks is not None or config.run is not None
        self.capacity_blocks = 0
        """As in the record, of the blocks of this model."""
        self._peer, self._num_blocks = peer, num_blocks
        self._greeted = Greeted(peer.ping)
        self._least_ms = 0.0
        """Milliseconds for a block that are believed at least."""
        self._announcement = announcement or Announcement(config, peer)
        self._announcement.add(self)

    @property
    def is_serving(self) -> bool:
        return bool(self.hosts)

    async def look(self) -> list[span_choice.Claim]:
        """What the others hold, or are about to; those that do not answer a hello hold nothing."""
        records = (await self._peer.directory.snapshot(self.model.name)).peers
        self.last_seen = _Seen(await self._greeted.answering([one for one in records if one.peer != self.me]))
        return span_choice.claims(self.last_seen, self.weights, self.me)

    @property
    def is_paused(self) -> bool:
        """Whether an operator lets no new sessions begin at this node."""
        return self._announcement.is_paused or self._announcement.is_leaving

    @property
    def is_alone(self) -> bool:
        """Whether we know no peer, however peers were looked for."""
        return not self._peer.num_neighbours

    async def records(self) -> Sequence[PeerRecord]:
        """All peers that announce the model now."""
        return (await self._peer.directory.snapshot(self.model.name)).peers

    def claims_by_peer(self, records: Sequence[PeerRecord]) -> list[span_choice.Claims]:
        """The others, as placement counts them; of a crowd MAX_PLANNED."""
        self._least_ms = span_choice.least_ms(records, self.weights)
        return span_choice.planned(span_choice.claims_by_peer(records, self.weights, self.dtype, self.me), self._peer.has_met)

    def worked(self) -> Worked:
        """What our hosts have computed since this was asked last."""
        return sum((host.runner.work.take() for host in self.hosts), Worked())

    def as_member(self, span: Span) -> Member:
        """Ourselves, were `span` ours."""
        record = self.record()
        hosted = next(one for one in record.blocks() if one.span == span and one.weights.model == self.model)
        return span_choice.as_member(record, hosted, self._least_ms)

    async def look_closely(self) -> list[PeerRecord]:
        """Those who host what comes right after our span."""
        return neighbours.successors(await self.records(), self.weights, self.hosts[-1].served.span) if self.hosts else []

    async def join(self, span: Span | None) -> None:
        """Announce that we are about to host `span`; None: that we are not."""
        self.joining = span
        await self.tell()

    async def serve(self, host: Host) -> None:
        """Announce that we host it."""
        self.hosts.append(host)
        self.joining, self.weights = None, host.served.weights
        await self.tell()

    async def drop(self, host: Host) -> None:
        """Announce that we no longer host it."""
        self.hosts.remove(host)
        await self.tell()

    async def tell(self) -> None:
        """Push the record as it is now."""
        await self._announcement.tell()

    async def stop_serving(self) -> None:
        for host in self.hosts:
            await host.stop()

    def served(self, span: Span, hidden_size: int, beside: frozenset[Unit] = frozenset()) -> Served:
        """What sessions have to agree with."""
        return Served(
            peer=self.me,
            weights=self.weights,
            blocks=Blocks.of(span),
            beside=beside,
            num_blocks=self._num_blocks,
            hidden_size=hidden_size,
            dtype=self.dtype,
        )

    def record(self) -> PeerRecord:
        """This node now, with its other models."""
        return self._announcement.record()

    def hosted(self) -> list[Hosted]:
        """The blocks of every host, the newest first, and those that we are about to host; then what all hosts of one state and one set of
        weights have beside their blocks, since others count a unit for all blocks of those."""
        hosts = [host for host in reversed(self.hosts) if not self._is_left_out(host)]
        found = [self._unit(host.served.blocks, host.served.weights, _state(host), host.load()) for host in hosts]
        if self.joining is not None:
            speed = Load(block_ms=self.hosts[-1].block_ms) if self.hosts else NO_LOAD
            found.append(self._unit(Blocks.of(self.joining), self.weights, "joining", speed))
        groups: dict[tuple[Weights, str], list[frozenset[Unit]]] = {}
        for host in hosts:
            groups.setdefault((host.served.weights, _state(host)), []).append(host.served.beside)
        for (weights, state), beside in groups.items():
            found += [self._unit(unit, weights, state) for unit in sorted(beside[0].intersection(*beside))]
        return found

    def _is_left_out(self, host: Host) -> bool:
        """An older version that is drained: no route leads there, and three versions of a long name do not fit into a record."""
        return host.is_draining and host.served.weights.version < self.weights.version

    def _unit(self, unit: Unit, weights: Weights, state: str, load: Load = NO_LOAD) -> Hosted:
        capacity = self.capacity_blocks if isinstance(unit, Blocks) else 0
        return Hosted(
            unit=unit, weights=weights, num_blocks=self._num_blocks, dtype=self.dtype, state=state, load=load,
            capacity_blocks=capacity,
        )  # fmt: skip


def _state(host: Host) -> str:
    return "draining" if host.is_draining or host.is_paused else "serving"


@dataclass(frozen=True, slots=True)
class _Seen:
    peers: Sequence[PeerRecord] = ()
