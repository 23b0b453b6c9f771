"""Web pages of others may ask if the gateway's owner says so.

The page of the swarm is for itself only.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from node import api_keys
from node.gateway.answers.gateway import Gateway
from node.gateway.http.origins import checked_origins
from protocols.errors import ConfigError
from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.test_callers import ASK, NOW_S, bearer, serving
from tests.node.gateway.processes.test_hanging_up import swarm as swarm

OURS, OTHER = "https://chat.example:8443", "https://evil.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


def test_pages_of_an_origin_that_is_named_may_ask_with_a_key(swarm: WireSwarm, tmp_path: Path) -> None:
    """What a browser does: it asks without a key whether it may, then with the key; scripts read what the budget has left."""
    keys = tmp_path / api_keys.FILE
    secret = api_keys.add(keys, "alice", NOW_S, requests_per_minute=5)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        may = await client.options("/v1/completions", headers={"origin": OURS, **PREFLIGHT})
        assert may.status_code == 200 and may.headers["access-control-allow-origin"] == OURS
        assert "authorization" in may.headers["access-control-allow-headers"]
        said = await client.post("/v1/completions", json=ASK, headers={"origin": OURS, **bearer(secret)})
        assert said.status_code == 200 and said.headers["access-control-allow-origin"] == OURS
        assert "x-ratelimit-remaining-requests" in said.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in said.headers, "cookies stay with our own page"
        refused = await client.post("/v1/completions", json=ASK, headers={"origin": OURS})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == OURS, "so that it can read why"

    serving(swarm, work, keys=keys, origins=(OURS,))


def test_others_may_not(swarm: WireSwarm) -> None:
    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        for origin in (OTHER, "null", OURS + "0", OURS.replace("https", "http")):
            may = await client.options("/v1/completions", headers={"origin": origin, **PREFLIGHT})
            assert may.status_code >= 400 and "access-control-allow-origin" not in may.headers, origin
            said = await client.post("/v1/completions", json=ASK, headers={"origin": origin})
            assert said.status_code == 403 and "access-control-allow-origin" not in said.headers, origin
        rebound = await client.post("/v1/completions", json=ASK, headers={"origin": OURS, "host": "evil.example"})
        assert rebound.status_code == 403, "another host name was pointed here"
        page = await client.get("/page/", headers={"origin": OURS})
        assert page.status_code == 403 and "access-control-allow-origin" not in page.headers
        assert (await client.get("/page/")).status_code == 200

    serving(swarm, work, origins=(OURS,))


def test_without_origins_no_page_of_others_may(swarm: WireSwarm) -> None:
    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        may = await client.options("/v1/completions", headers={"origin": OURS, **PREFLIGHT})
        assert may.status_code == 403 and "access-control-allow-origin" not in may.headers

    serving(swarm, work)


@pytest.mark.parametrize(
    "origin", ["chat.example", "https://chat.example/", "https://Chat.example", "ftp://x", "null", "https://"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"--allow-origin .*: expected scheme, host and port alone"):
        checked_origins([OURS, origin], needs_key=True)


def test_all_origins_are_for_gateways_with_keys() -> None:
    assert checked_origins(["*"], needs_key=True) == ("*",) and checked_origins([OURS], needs_key=False) == (OURS,)
    with pytest.raises(ConfigError, match="swarm keys add NAME"):
        checked_origins(["*"], needs_key=False)
