"""Why a request is not answered: a status, words, and the field at fault."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from protocols import errors
from protocols.errors import SwarmError, shown

log = logging.getLogger(__name__)

AGAIN_S = 5
"""After so many seconds a client may try again what failed for want of nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """In one form for all APIs; each has its own way to write it."""

    status: int
    message: str
    param: str | None = None
    """The field of the request, with dots: `messages.0.content`."""
    code: str | None = None
    retry_after_s: int | None = None


class RefusedError(Exception):
    """A request that the gateway itself refuses."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.refusal = Refusal(status=status, message=message, param=param, code=code, retry_after_s=retry_after_s)


_STATUS: tuple[tuple[type[SwarmError], int], ...] = (
    (errors.ModelNotFoundError, 404),
    (errors.BadRequestError, 400),
    (errors.ModelNotSupportedError, 400),
    (errors.NoRouteError, 503),
    (errors.VersionGoneError, 503),
    (errors.PeerUnreachableError, 503),
    (errors.DeadlineError, 503),
    (errors.CacheFullError, 503),
    (errors.OverloadedError, 503),
    (errors.DrainingError, 503),
)
"""Errors of the swarm by what a client can do about them; all others are 502."""


def of_swarm(error: SwarmError) -> Refusal:
    """A failure of the swarm, in its own words."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 502)
    return Refusal(
        status=status, message=str(error) or error.code, code=error.code, retry_after_s=AGAIN_S if status == 503 else None
    )


def of_error(error: BaseException) -> Refusal:
    """Of any failure; one that is not expected goes to the log, and not to the client."""
    if isinstance(error, RefusedError):
        return error.refusal
    if isinstance(error, SwarmError):
        return of_swarm(error)
    log.error("a request failed: %s", error, exc_info=error)
    return Refusal(status=500, message="a fault of the gateway; its log says more", code="internal")


def of_validation(found: Sequence[Any]) -> Refusal:
    """The first of pydantic's errors about a body, which FastAPI gives as dictionaries."""
    error: ErrorDetails = found[0]
    kind = error["type"]
    where = [str(part) for part in error["loc"] if part != "body"]
    if kind == "json_invalid":
        return Refusal(status=400, message=f"the body is no JSON: {error.get('ctx', {}).get('error', error['msg'])}")
    param = ".".join(_without_kinds(where)) or None
    if kind == "extra_forbidden":
        message = f"unknown field {param}; this gateway refuses what it does not know"
    elif kind == "missing":
        message = f"{param or 'a body of JSON (Content-Type: application/json)'} is missing"
    elif kind == "unsupported":
        message = f"{param} {error['msg']}"
    else:
        message = f"{param or 'the body'}: {error['msg'].removeprefix('Value error, ')}, got {shown(error['input'])}"
    return Refusal(status=400, message=message, param=param, code="unsupported_field" if kind == "unsupported" else None)


def _without_kinds(where: list[str]) -> list[str]:
    """Without the names that pydantic gives to the members of a union."""
    return [part for part in where if "[" not in part and part not in ("str", "list", "int")]
