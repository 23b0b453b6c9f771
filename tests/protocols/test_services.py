"""Procedures have one name each, and only idempotent ones are repeated."""

from __future__ import annotations

from protocols import services
from protocols.services import ALL, Method


def test_the_table_is_complete_and_its_names_are_unique() -> None:
    rows = [value for value in vars(services).values() if isinstance(value, Method)]
    assert set(rows) == set(ALL)
    assert len({row.name for row in ALL}) == len({row.path for row in ALL}) == len(ALL)


def test_paths_are_what_older_peers_call() -> None:
    assert [row.path for row in ALL if row.name in ("hello", "manifest", "directory", "dial_back", "session", "attach")] == [
        "/murmuration.v1/hello",
        "/murmuration.v1/manifest",
        "/murmuration.v1/directory",
        "/murmuration.v1/dial_back",
        "/murmuration.v1/session",
        "/murmuration.v1/attach",
    ]


def test_a_stream_is_never_sent_again_by_itself() -> None:
    """Its steps are numbered instead; sending a whole stream again would compute them twice."""
    assert not any(row.streaming and row.is_idempotent for row in ALL)


def test_whatever_is_no_stream_has_a_deadline() -> None:
    assert all(row.streaming or (row.timeout_s is not None and row.timeout_s > 0) for row in ALL)
