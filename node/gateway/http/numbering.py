"""A request's number: in ids, headers and log lines."""

from __future__ import annotations

import secrets

from swarm import log_ids

HEADERS = (b"x-request-id", b"request-id")
"""One of them is in each response; the second one is Anthropic's."""


def begin() -> str:
    """Give the request of this task a number: what is logged for it says it."""
    number = secrets.token_hex(12)
    log_ids.request_is(number)
    return number


def number() -> str:
    """That of the request which is answered here."""
    return log_ids.current().get("request") or secrets.token_hex(12)
