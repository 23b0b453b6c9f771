"""One entry per RPC: name, shape, repeatability and deadline.

The deadline is the one that it gets by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.defaults import MAX_HEADER_BYTES, MAX_PART_BYTES, MAX_REQUEST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A remote procedure. Requests and replies are frames (`frame.py`); the comment names their messages."""

    name: str
    """Path on the wire: `/murmuration.<name>`."""

    streaming: bool = False
    """True: both sides send any number of frames until one ends; False: one request, one reply."""

    is_idempotent: bool = True
    """True: may be sent again if it is not known whether it arrived."""

    timeout_s: float | None = 10.0
    """Deadline where the caller has none; None only for streams, whose steps carry budgets of their own."""

    max_request_bytes: int = MAX_REQUEST_BYTES
    """Largest request of a unary call; a server refuses more."""

    @property
    def path(self) -> str:
        return f"/murmuration.v1/{self.name}"


HELLO = Method(name="hello")  # hello.Hello -> hello.Hello
MANIFEST = Method(name="manifest", timeout_s=60.0)  # weights.ManifestRequest -> weights.Manifest
DIRECTORY = Method(name="directory")  # directory.DirectoryRequest -> directory.DirectoryReply
PIECES = Method(
    name="pieces", streaming=True, is_idempotent=False, timeout_s=None
)  # pieces.WeightsRequest … -> Holdings, Hashes, Piece, FilePart
DIAL_BACK = Method(name="dial_back")  # hello.DialBack -> hello.DialBackReply
SESSION = Method(name="session", streaming=True, is_idempotent=False, timeout_s=None)  # inference.Open … -> Expect, HopLost …
ATTACH = Method(name="attach", streaming=True, is_idempotent=False, timeout_s=None)  # inference.Attach -> Reply, HopLost …
ABOUT = Method(name="about")  # about.AboutRequest -> about.About
PROGRESS = Method(name="progress")  # progress.ProgressRequest -> progress.Progress
ORDER = Method(name="order", is_idempotent=False)  # orders.Order -> orders.OrderReply
TRAIN = Method(
    name="train", streaming=True, is_idempotent=False, timeout_s=None
)  # training.Pass, Gradient -> Output, Result, PassFailed
RUN_STATUS = Method(name="run_status")  # run_status.StatusRequest -> run_status.RunStatus
PUBLISH = Method(name="publish")  # run_status.Publish -> run_status.Published
RESTORE = Method(name="restore", timeout_s=30.0)  # kept.Restore -> kept.Restored
HOLD = Method(name="hold", timeout_s=30.0)  # held.Hold -> held.Holding
LEASE = Method(name="lease")  # leases.LeaseRequest -> leases.LeaseAnswer
JOURNAL = Method(name="journal")  # journal.JournalRequest -> journal.JournalPart
STATE = Method(
    name="state", streaming=True, is_idempotent=False, timeout_s=None
)  # state.StateRequest -> StateHeader, StatePart …, for each unit

# Training: replicas agree on a gradient sum (averaging.py). Callers give the deadlines of their group.
CLOSE = Method(name="close", timeout_s=1_800.0, max_request_bytes=MAX_HEADER_BYTES)  # groups.Group -> averaging.Closed
CARD = Method(name="card", timeout_s=600.0, max_request_bytes=MAX_HEADER_BYTES)  # groups.Group -> cards.Card
PREPARE = Method(
    name="prepare", is_idempotent=False, timeout_s=600.0, max_request_bytes=MAX_PART_BYTES
)  # averaging.Prepare -> averaging.Prepared
SLICE = Method(name="slice", streaming=True, is_idempotent=False, timeout_s=600.0)  # OfGroup, Values … -> Values …
DECIDE = Method(name="decide", timeout_s=600.0, max_request_bytes=MAX_PART_BYTES)  # averaging.Decide -> averaging.Decision
DECISION = Method(name="decision", timeout_s=600.0)  # groups.OfGroup -> averaging.Decision
APPLY = Method(name="apply", timeout_s=600.0)  # averaging.Apply -> averaging.Applied

ALL = (
    *(HELLO, ABOUT, MANIFEST, PIECES, DIRECTORY, DIAL_BACK, SESSION, ATTACH, PROGRESS, ORDER),
    *(TRAIN, RUN_STATUS, PUBLISH, LEASE, JOURNAL, RESTORE, HOLD, STATE),
    *(CLOSE, CARD, PREPARE, SLICE, DECIDE, DECISION, APPLY),
)
