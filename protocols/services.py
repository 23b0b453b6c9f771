"""One entry per RPC: name, shape, repeatability and deadline.

The deadline is the one that it gets by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.defaults import MAX_REQUEST_BYTES


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
PROGRESS = Method(name="progress")  # progress.ProgressRequest -> progress.Progress
TRAIN = Method(
    name="train", streaming=True, is_idempotent=False, timeout_s=None
)  # training.Pass, Gradient -> Output, Result, PassFailed
RUN_STATUS = Method(name="run_status")  # run_status.StatusRequest -> run_status.RunStatus
PUBLISH = Method(name="publish")  # run_status.Publish -> run_status.Published

ALL = (HELLO, MANIFEST, PIECES, DIRECTORY, DIAL_BACK, SESSION, ATTACH, PROGRESS, TRAIN, RUN_STATUS, PUBLISH)
