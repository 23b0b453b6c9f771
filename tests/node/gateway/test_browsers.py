"""Whose web page asks is told by two headers."""

from __future__ import annotations

import pytest

from node.gateway.http.browsers import ANY, is_foreign

HERE = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [(None, HERE, ()), (f"http://{HERE}", HERE, ()), ("http://localhost:8000", "localhost:8000", ()), (None, "[::1]:8000", ()),
     ("https://chat.example", HERE, ("https://chat.example",)), ("null", HERE, (ANY,))],
)  # fmt: skip
def test_our_own_page_and_allowed_ones_may_ask(origin: str | None, host: str, allowed: tuple[str, ...]) -> None:
    assert not is_foreign(origin, host, True, allowed)


@pytest.mark.parametrize(
    ("origin", "host"),
    [("null", HERE), ("http://127.0.0.1:3000", HERE), ("https://chat.example.evil.example", HERE), (None, "evil.example:8000"),
     (None, None), (None, "["), ("http://[", HERE), (f"http://{HERE}.evil.example", HERE),
     ("http://evil.example:8000", "evil.example:8000")],
)  # fmt: skip
def test_other_pages_names_pointed_here_and_no_addresses_may_not(origin: str | None, host: str | None) -> None:
    assert is_foreign(origin, host, True, ("https://chat.example",))
