"""Every refusal: class, wire code, and if another peer may succeed.

- SwarmError
  - BadRequestError            what was asked is malformed or out of range; no peer will accept it
    - FrameError               bytes that are no frame of ours
    - TensorFormatError        a tensor that disagrees with its header, or values that are not allowed
    - ConfigError              a setting of ours that makes no sense
    - DataError                a file of training data that cannot be read as what it should be
  - ProtocolVersionError       the two peers speak no common version
  - UnauthenticatedError       the caller did not prove who it is, or the certificate is not the peer's
    - PrivateSwarmError        one of the two peers is in a private swarm, and the other has not its key
    - NotAllowedError          a list of the volunteer (allow, deny) leaves this peer out
  - ModelNotFoundError         no such model here
  - ModelMismatchError         same name, other weights
  - ModelNotSupportedError     the architecture cannot be served, with the reason
  - CheckpointError            a missing, truncated or inconsistent file of a checkpoint
  - DiskFullError              a disk of ours is full; says how much is needed
  - SpanNotServedError         this peer does not (or no longer) host those blocks
  - VersionMismatchError       this peer has another version of a unit in training
  - VersionGoneError           the version that a session began with is served no more
  - NotAgreedError             a group that averages ended without agreement; nothing was changed
  - LedgerClosedError          the version's gradient sums are being averaged and take nothing more
  - NonFiniteGradientError     NaN or infinity in a gradient or a loss; nothing was added
  - CacheFullError             no memory for more tokens
  - OverloadedError            queue or session limit reached
  - PassTooLargeError          no memory for so many tokens of a client's pass at once
  - DrainingError              this peer is leaving
  - PeerUnreachableError       no connection, or it broke
  - DeadlineError              no answer in time
  - NonsenseError              a neighbour sent values that cannot be used
  - NoRouteError               no live peers cover the model
  - InternalError              a fault of ours; the text says where to look

A peer's error travels as (code, message) and is rebuilt by `from_wire`; an unknown code becomes SwarmError.
"""

from __future__ import annotations

import reprlib
from typing import ClassVar

MAX_MESSAGE = 2_000
"""Letters of an error's message that cross the wire."""


class SwarmError(Exception):
    """A refusal that a person or a peer can act on. `str(error)` is one line: what, got, expected, next step."""

    code: ClassVar[str] = "error"
    try_another_peer: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class BadRequestError(SwarmError):
    """What was asked is malformed or out of range; no peer will accept it."""

    code = "bad_request"
    exit_code = 2


class FrameError(BadRequestError):
    """Bytes that are no frame of ours: wrong magic, version, lengths or limits."""

    code = "bad_frame"


class TensorFormatError(BadRequestError):
    """A tensor that disagrees with its header, is too large, or holds values that are not allowed."""

    code = "bad_tensor"


class ConfigError(BadRequestError):
    """A setting that makes no sense."""

    code = "bad_config"


class DataError(BadRequestError):
    """A file of training data that cannot be read as what it should be; the message names file and line, record or byte."""

    code = "bad_data"


class ProtocolVersionError(SwarmError):
    """The two peers speak no common version; the message says who has to upgrade."""

    code = "protocol_version"
    try_another_peer = True
    exit_code = 3


class UnauthenticatedError(SwarmError):
    """The caller did not prove who it is, or a certificate is not the peer's."""

    code = "unauthenticated"
    try_another_peer = True
    exit_code = 3


class PrivateSwarmError(UnauthenticatedError):
    """One of the two peers is in a private swarm, and the other has not proved that it holds the key."""

    code = "private_swarm"


class NotAllowedError(UnauthenticatedError):
    """A list that the user of one of the two peers keeps (`--allow`, `--deny`) leaves the other out, or does not name it as an operator
    (`--operators`)."""

    code = "not_allowed"


class ModelNotFoundError(SwarmError):
    """No directory, no name in the swarm and no Hub repository goes by this name."""

    code = "model_not_found"
    exit_code = 4


class ModelMismatchError(SwarmError):
    """The same name, but other weights; the message names the first tensor or file that differs."""

    code = "model_mismatch"
    try_another_peer = True
    exit_code = 4


class ModelNotSupportedError(SwarmError):
    """The architecture cannot be served, and the message says why."""

    code = "model_not_supported"
    exit_code = 4


class CheckpointError(SwarmError):
    """A missing, truncated or inconsistent file of a checkpoint."""

    code = "bad_checkpoint"
    exit_code = 4


class DiskFullError(SwarmError):
    """A disk of ours is full; the message says how much is needed."""

    code = "disk_full"


class SpanNotServedError(SwarmError):
    """This peer does not (or no longer) host the blocks it was asked to run."""

    code = "span_not_served"
    try_another_peer = True
    exit_code = 5


class VersionMismatchError(SwarmError):
    """A unit in training has another version here than was asked for; the message says which, and nothing was added."""

    code = "version_mismatch"
    try_another_peer = True
    exit_code = 5


class VersionGoneError(SwarmError):
    """The version of a model in training that a session began with is served no more; the message names the one that is served now."""

    code = "version_gone"
    exit_code = 7


class NotAgreedError(SwarmError):
    """A group that averages gradients ended here without agreement; sums and weights are as they were."""

    code = "not_agreed"
    try_another_peer = True
    exit_code = 5


class LedgerClosedError(SwarmError):
    """The gradient sums of this version are being averaged: they take no micro-batch more; nothing was added."""

    code = "ledger_closed"
    try_another_peer = True
    exit_code = 5


class NonFiniteGradientError(SwarmError):
    """NaN, infinity or an absurd norm in a gradient or a loss; nothing was added. If another peer gets the same, the data is at fault."""

    code = "non_finite_gradient"
    try_another_peer = True
    exit_code = 6


class CacheFullError(SwarmError):
    """There is no memory for more tokens; nothing was changed."""

    code = "cache_full"
    try_another_peer = True
    exit_code = 5


class OverloadedError(SwarmError):
    """A queue or a number of sessions is at its limit; nothing was changed."""

    code = "overloaded"
    try_another_peer = True
    exit_code = 5


class PassTooLargeError(SwarmError):
    """There is no memory here for a client's pass of so many tokens, whatever else runs; fewer sequences at once may fit."""

    code = "pass_too_large"
    exit_code = 5


class DrainingError(SwarmError):
    """This peer is leaving and takes nothing new."""

    code = "draining"
    try_another_peer = True
    exit_code = 5


class PeerUnreachableError(SwarmError):
    """No connection to a peer, or it broke; whatever it had in hand may or may not have been done."""

    code = "peer_unreachable"
    try_another_peer = True
    exit_code = 6


class DeadlineError(SwarmError):
    """No answer in time; whatever was asked may or may not have been done."""

    code = "deadline"
    try_another_peer = True
    exit_code = 6


class NonsenseError(SwarmError):
    """The hop above sent values that are no hidden states of this model. One of the two peers is at fault, and it is not known which."""

    code = "nonsense_from_above"
    try_another_peer = True
    exit_code = 6


class NoRouteError(SwarmError):
    """No live peers cover the model; the message names the missing blocks and how to host them."""

    code = "no_route"
    exit_code = 7


class InternalError(SwarmError):
    """A fault of ours on the peer's side; its log holds the traceback."""

    code = "internal"
    try_another_peer = True


MAX_QUOTED = 300
"""Letters of a peer's text that are shown."""


def quoted(speaker: str, error: SwarmError) -> SwarmError:
    """The same error with its text as what it is: another's word, and shortened. `from_wire` has cleaned it of control letters."""
    text = str(error)
    return type(error)(f"{speaker} says: '{text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + '…'}'")


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother, self.maxstring, self.maxlist, self.maxdict = 3, 60, 60, 6, 4

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:24]) + ("" if len(value) <= 24 else f"… ({len(value)} bytes)")


_SHOWN = _Shown()


def shown(value: object) -> str:
    """An untrusted value as text for a message: its type and a short form, for any size or depth (`str` of a deep list raises)."""
    return f"{type(value).__name__} {_SHOWN.repr(value)[:100]}"


def _tree(root: type[SwarmError]) -> list[type[SwarmError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


BY_CODE: dict[str, type[SwarmError]] = {error.code: error for error in _tree(SwarmError)}


def to_wire(error: SwarmError) -> tuple[str, str]:
    """(code, message), the message cut to what may cross the wire."""
    text = str(error)[:MAX_MESSAGE].encode("utf-8", "replace").decode()  # a file's name may hold bytes that are no text
    return error.code, text


def from_wire(code: object, message: object) -> SwarmError:
    """The error that a peer reported; its text is cleaned of control letters, since it will be printed."""
    words = message if isinstance(message, str) else shown(message)
    text = "".join(letter if letter.isprintable() else " " for letter in words[:MAX_MESSAGE])
    return (BY_CODE.get(code, SwarmError) if isinstance(code, str) else SwarmError)(text)
