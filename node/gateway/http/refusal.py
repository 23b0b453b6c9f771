"""Why a request is refused: status, message, and the wrong field."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from protocols import errors
from protocols.errors import SwarmError, shown

log = logging.getLogger(__name__)

MAX_PARAM = 200
"""Letters of a field's name that are repeated: a client may send any name."""

NO_TEXT = frozenset({"image", "audio", "file", "document", "video"})
"""Types of content, without what APIs add to their names."""

NO_SUCH_CONTENT = "; models here read text only"

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


def of_validation(found: Sequence[Any], body: Any) -> Refusal:
    """The first of pydantic's errors about a body, which FastAPI gives as dictionaries."""
    error, where = _most_specific(found, body)
    kind = error["type"]
    if kind == "json_invalid":
        return Refusal(status=400, message=f"the body is no JSON: {error.get('ctx', {}).get('error', error['msg'])}")
    param = ".".join(map(str, where))[:MAX_PARAM] or None
    if kind == "extra_forbidden":
        message = f"unknown field {param}; this gateway refuses what it does not know"
    elif kind == "missing":
        message = f"{param or 'a body of JSON (Content-Type: application/json)'} is missing"
    elif kind == "unsupported":
        message = f"{param} {error['msg']}"
    elif kind == "union_tag_invalid":
        param = f"{param}.type"
        message = f"{param}: expected one of {error['ctx']['expected_tags']}, got {shown(error['ctx']['tag'])}"
    else:
        message = f"{param or 'the body'}: {error['msg']}, got {shown(error['input'])}"
    message += NO_SUCH_CONTENT if param is not None and param.endswith(".type") and _is_no_text(error) else ""
    return Refusal(status=400, message=message, param=param, code="unsupported_field" if kind == "unsupported" else None)


def _is_no_text(error: ErrorDetails) -> bool:
    kind = error.get("ctx", {}).get("tag", error["input"])
    return isinstance(kind, str) and kind.removeprefix("input_").removesuffix("_url") in NO_TEXT


def _most_specific(found: Sequence[Any], body: Any) -> tuple[ErrorDetails, list[str | int]]:
    """The first error with the place that it is about; of one object, that of its type; of a value that may have several forms, the error
    that lies deepest in it."""
    places = [(error, _place(error, body)) for error in found]
    first = next((where for _, where in places if where == [*places[0][1][:-1], "type"]), places[0][1])
    return max((one for one in places if one[1][: len(first)] == first), key=lambda one: len(one[1]))


def _place(error: ErrorDetails, body: Any) -> list[str | int]:
    """Keys and indices of the body itself, without pydantic's own names for the forms that a value may have."""
    where, value = list[str | int](), body
    for at, part in enumerate(error["loc"][1:], 2):
        is_missing = error["type"] == "missing" and at == len(error["loc"])
        if isinstance(value, dict) and (part in value or is_missing):
            where, value = [*where, part], value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            where, value = [*where, part], value[part]
    return where
