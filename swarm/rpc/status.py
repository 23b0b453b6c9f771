"""Our errors to gRPC statuses and back.

One place for each direction.

Our code travels in trailing metadata and our text in the status; if the metadata are absent, gRPC itself speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio

from protocols import errors
from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer

CODE_KEY = "murmuration-code"
ADMITTED_KEY = "murmuration-admitted"
"""In the initial metadata of a stream: the caller is authenticated, and a handler runs."""

_MAX_TEXT_BYTES = 2_000
"""gRPC percent-encodes the text (three bytes for one) and limits all metadata to 8 KiB."""

_STATUS: dict[str, grpc.StatusCode] = {
    errors.UnauthenticatedError.code: grpc.StatusCode.UNAUTHENTICATED,
    errors.OverloadedError.code: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.CacheFullError.code: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError.code: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DrainingError.code: grpc.StatusCode.UNAVAILABLE,
    errors.PeerUnreachableError.code: grpc.StatusCode.UNAVAILABLE,
    errors.InternalError.code: grpc.StatusCode.INTERNAL,
}
"""Only for tools that look at gRPC statuses; our own peers read the code. Whatever is not here: see `status_of`."""

LOST_STATUS = "Internal error from Core"
"""gRPC's words if a message could not be written because the other side had just ended the call: its status, and our error, are lost."""


def status_of(error: SwarmError) -> grpc.StatusCode:
    if isinstance(error, errors.BadRequestError):
        return grpc.StatusCode.INVALID_ARGUMENT
    return _STATUS.get(error.code, grpc.StatusCode.FAILED_PRECONDITION)


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: SwarmError) -> NoReturn:
    """End a call with one of our errors."""
    code, text = errors.to_wire(error)
    details = text.encode("utf-8", "replace")[:_MAX_TEXT_BYTES].decode("utf-8", "ignore")
    await context.abort(status_of(error), details, ((CODE_KEY, code),))


def from_grpc(error: grpc.aio.AioRpcError, peer: PeerId) -> SwarmError:
    """What a failed call means."""
    return from_status(error.code(), error.details(), error.trailing_metadata() or (), peer)


def of_cancelled(peer: PeerId) -> errors.PeerUnreachableError | asyncio.CancelledError:
    """What an asyncio.CancelledError out of gRPC means.

    If another call finds a connection dead, it is closed, and gRPC cancels all calls on it, of which their tasks know nothing.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        return asyncio.CancelledError()
    return errors.PeerUnreachableError(f"the connection to peer {short_peer(peer)} broke")


def from_status(code: grpc.StatusCode, details: str | None, metadata: Iterable[Any], peer: PeerId) -> SwarmError:
    """The peer's own error if it sent one, else our reading of gRPC's."""
    for key, value in metadata:
        if key == CODE_KEY:
            return errors.quoted(f"peer {short_peer(peer)}", errors.from_wire(value, details or ""))
    text = str(errors.from_wire("", details or code.name))
    name = short_peer(peer)
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineError(
                f"peer {name} gave no answer in time; it may be busy: ask again with more time, or another peer"
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.ABORTED:
            return errors.PeerUnreachableError(f"the connection to peer {name} broke: {text}")
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return errors.UnauthenticatedError(f"peer {name} does not take our credential: {text}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ProtocolVersionError(f"peer {name} does not offer this call ({text}): one of the two needs an upgrade")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return errors.FrameError(f"a message to or from peer {name} is too large ({text}): send smaller steps")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.OverloadedError(f"peer {name} takes no more calls: {text}")
        case grpc.StatusCode.UNKNOWN | grpc.StatusCode.INTERNAL if (
            "RST_STREAM" in text or "Stream removed" in text or "closed" in text or LOST_STATUS in text
        ):
            return errors.PeerUnreachableError(f"the connection to peer {name} broke: {text}")
    return errors.InternalError(f"the call to peer {name} failed with {code.name}: {text}")
