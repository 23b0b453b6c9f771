"""Every setting of a gateway, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from node.gateway.answers.traces import OFF, Traces
from node.gateway.callers.page_orders import Reach
from protocols.errors import ConfigError
from protocols.identity import Identity
from swarm import places
from swarm.clock import SYSTEM, Clock
from swarm.meeting.bootstrap import NOBODY_ELSE, FindConfig
from swarm.meeting.entering import ANYBODY, Entry
from swarm.peer.thin_peer import ThinPeer
from swarm.suggestion import NodeCommand
from swarm.thin.listing import Listing, open_listing
from swarm.thin.model import ThinModel, open_model
from swarm.waiting import Waits

ROUTE_TIMEOUT_S = 30.0
"""Seconds that a request waits for nodes that cover its model, at its start or after a death: less than other clients, since HTTP has no
progress to show."""

WAIT_S = 10.0
"""Seconds that a request waits for one of the gateway's places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Which models, where their nodes are, and what clients may cost."""

    models: tuple[str, ...] = ()
    """Names in the swarm, or NAME@DIGEST; clients ask by exactly these. None = every model that the swarm serves, or NAME@DIGEST of one."""

    weights: Mapping[str, str] = field(default_factory=dict)
    """NAME -> NAME@DIGEST, for names that mean certain weights."""

    peers: tuple[str, ...] = ()
    swarm: str = "public"
    find: FindConfig = NOBODY_ELSE
    """Which peers to ask if none of `peers` answers."""

    entry: Entry = ANYBODY
    """The key of a private swarm, whom we talk to, and who we are."""

    data_dir: Path | None = None
    dtype: str = "auto"
    priority: int = 0
    route_timeout_s: float = ROUTE_TIMEOUT_S
    accept_new_weights: bool = False
    follow: bool = False
    """Of a model in training: an answer whose version is served no more goes on with the newest one."""

    keys: Path | None = None
    """The file of the keys that clients need (`node/api_keys.py`); None, or a file without keys = no key is needed."""

    operator: Identity | None = None
    """In whose name the page's buttons give orders to nodes; None = the page is read-only."""

    max_requests: int = 64
    """Requests that are answered at once; others wait."""

    max_waiting: int = 256
    """Requests that wait; others get 429."""

    wait_s: float = WAIT_S
    """Longest wait of a request; then it gets 429."""

    max_body_bytes: int = 8 << 20
    """Largest body of a request; larger ones get 413."""

    max_seconds: float = 3600.0
    """Longest time from a request's headers to the end of its answer, which then ends as at its length."""

    origins: tuple[str, ...] = ()
    """Of web pages that may use the APIs, beside our own page; `*` = of all."""

    traces: Traces = OFF
    """Who keeps traces of requests."""

    runs: Path | None = None
    """Where trainers of this machine write what they measure, for the page."""

    clock: Clock = SYSTEM
    waits: Waits = field(default_factory=Waits)
    """Where is said what is being waited for."""

    def __post_init__(self) -> None:
        if self.max_requests < 1 or self.max_body_bytes < 1:
            raise ConfigError(f"limits are 1 or more, got {self.max_requests} requests and {self.max_body_bytes} bytes")
        if not self.max_seconds > 0:
            raise ConfigError(f"an answer may take more than 0 seconds, got {self.max_seconds}")
        if self.max_waiting < 0 or not self.wait_s >= 0:
            raise ConfigError(f"limits of the queue are 0 or more, got {self.max_waiting} requests and {self.wait_s} s")

    def listing(self) -> AbstractAsyncContextManager[Listing]:
        """What the swarm serves; errors as of `swarm.thin.listing.open_listing`."""
        return open_listing(self.peers, self.swarm, self.find, self.entry)

    def meet(self) -> AbstractAsyncContextManager[ThinPeer]:
        """A peer that only asks, and sees those that are banned here, too; errors as of `ThinPeer`."""
        return ThinPeer(self.peers, self.swarm, self.find, replace(self.entry, bans=None))

    def reach(self) -> Reach:
        """Which nodes the operator may call: those that its lists allow, banned or not."""
        return Reach(replace(self.entry, bans=None).gate(), self.entry.lists)

    @property
    def hosting(self) -> NodeCommand:
        """What hosts a model of this swarm, for people."""
        return NodeCommand(swarm=self.swarm, peer=next(iter(self.peers), ""), data_dir=self.data_dir)

    def open(self, name: str) -> AbstractAsyncContextManager[ThinModel]:
        """One of the models; errors as of `swarm.thin.model.open_model`."""
        root = (self.data_dir or places.data_dir()) / "weights"
        return open_model(
            self.weights.get(name, name), peers=self.peers, root=root, swarm=self.swarm, dtype=self.dtype,
            route_timeout_s=self.route_timeout_s, priority=self.priority, find=self.find, waits=self.waits, entry=self.entry,
            accept_new_weights=self.accept_new_weights, follow=self.follow,
        )  # fmt: skip
