"""How each API writes an error, by the path of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from node.gateway.http.form import dumped
from node.gateway.http.refusal import Refusal

Form = Callable[[Refusal], dict[str, Any]]

_OPENAI = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def openai(refusal: Refusal) -> dict[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes"""
    kind = _kind(_OPENAI, refusal, "server_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def anthropic(refusal: Refusal) -> dict[str, Any]:
    """https://docs.anthropic.com/en/api/errors"""
    return {"type": "error", "error": {"type": _kind(_ANTHROPIC, refusal, "api_error"), "message": refusal.message}}


def ollama(refusal: Refusal) -> dict[str, Any]:
    """https://github.com/ollama/ollama/blob/main/docs/api.md"""
    return {"error": refusal.message}


def _kind(kinds: Mapping[int, str], refusal: Refusal, of_server: str) -> str:
    return kinds.get(refusal.status) or ("invalid_request_error" if refusal.status < 500 else of_server)


def form_of(path: str) -> Form:
    """The form of the API to which a path belongs; OpenAI's if it belongs to none."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic
    return ollama if path.startswith("/api/") else openai


def refused(refusal: Refusal, path: str) -> Response:
    """The answer to a request that is refused."""
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    return Response(dumped(form_of(path)(refusal)), refusal.status, headers, "application/json")
