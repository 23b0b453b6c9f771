"""Announcing and listening begin anew whenever this machine's addresses have changed."""

from __future__ import annotations

import pytest

from protocols.identity import from_seed
from swarm.lan import mdns, network

ME = from_seed(b"1" * 32).peer_id


@pytest.mark.skipif(not mdns.is_installed(), reason="the extra `lan` is not installed")
def test_it_follows_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    failures, started, closed = [RuntimeError("no interfaces")], list[object](), list[object]()

    class Socket:
        """In place of zeroconf's, which would need the network."""

        def __init__(self) -> None:
            if failures:
                raise failures.pop()
            started.append(self)

        def close(self) -> None:
            closed.append(self)

    here = {"10.0.0.1"}
    monkeypatch.setattr("zeroconf.Zeroconf", Socket)
    monkeypatch.setattr(network, "addresses", lambda: frozenset(here))
    speaker = mdns.Mdns(ME, tuple, None)
    with pytest.raises(OSError, match="no interfaces"):
        speaker.refresh()
    for _ in range(2):
        speaker.refresh()
    assert (len(started), len(closed)) == (1, 0)
    here.add("10.0.0.2")
    speaker.refresh()
    assert (len(started), closed) == (2, started[:1])
    here.clear()
    for _ in range(2):
        with pytest.raises(OSError, match="no IPv4 address"):
            speaker.refresh()
    assert closed == started
    here.add("10.0.0.1")
    speaker.refresh()
    speaker.stop()
    assert len(started) == 3 and closed == started
