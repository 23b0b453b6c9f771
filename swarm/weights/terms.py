"""A download's options, its progress, and the report at its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.weights.reputation import Reputation
from swarm.weights.roster import PAUSE_S
from swarm.weights.source import STALL_S

MAX_SOURCES = 8
"""Peers that are asked at once."""

PROGRESS_TIMEOUT_S = 60.0
"""Seconds without any progress before a download gives up; looks into the directory and dialling count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a download is. All numbers are bytes of pieces, except `fetched_bytes`."""

    total_bytes: int
    """Of all that is wanted, whatever was there before."""
    done_bytes: int
    """Proven and stored."""
    resumed_bytes: int
    """Of these: stored by an earlier attempt."""
    fetched_bytes: int
    """All that came from peers in this attempt, headers and lists of hashes too."""
    num_sources: int
    """Peers that are being asked now."""


@dataclass(kw_only=True)
class Report:
    """What a download took."""

    total_bytes: int = 0
    resumed_bytes: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    from_peer: dict[PeerId, int] = field(default_factory=dict)
    """Bytes of pieces that each gave."""
    liars: dict[PeerId, str] = field(default_factory=dict)
    """Peers that sent what the model does not have, and what it was."""


Sources = Callable[[], Awaitable[Sequence[PeerRecord]]]
"""Asks the directory: who may have these weights, the best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How patient a download is, and whom it tells."""

    max_sources: int = MAX_SOURCES
    reputation: Reputation | None = None
    """What peers have done in earlier downloads of this process; None = nothing is known."""
    progress_timeout_s: float = PROGRESS_TIMEOUT_S
    stall_s: float = STALL_S
    pause_s: float = PAUSE_S
    """A source that failed, or was full, is asked again after this; after longer if it fails again."""
    disk_bytes: int = 0
    """What all fetched models may take of the disk; 0 = what is free."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_warning: Callable[[str], None] = lambda text: None
    """A line for people: a peer that lies, by name."""
