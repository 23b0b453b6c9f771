"""Who sees the page: keys hold, and pages of others are refused."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from node import api_keys
from node.gateway import server
from tests.browser import Browser
from tests.end_to_end.processes import ProcessPool
from tests.families import make_checkpoint
from tests.forked import ForkServer
from tests.node.dashboard.processes.test_map import home
from tests.node.gateway.processes.conftest import serve

SOCKET = "page/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path_factory.mktemp("door"), fork_server) as made:
        yield made


@pytest.fixture(scope="module")
def peer(pool: ProcessPool) -> str:
    return pool.node(str(make_checkpoint("llama", pool.folder / "tiny"))).said["multiaddr"]


def socket_status(url: str, **headers: str) -> int:
    """What a WebSocket to the page is answered with; 101 = it is open."""
    try:
        with connect(url.replace("http", "ws") + SOCKET, additional_headers=headers, open_timeout=60):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_keys_hold_for_the_page_too(browser: Browser, pool: ProcessPool, peer: str) -> None:
    key = api_keys.add(pool.folder / "keyed" / api_keys.FILE, "alice", time.time())
    url = home(serve(pool, "keyed", "tiny", "--peer", peer))
    for path in ("page/", "page/chat", "page/_nicegui/3.18.0/static/nicegui.js", "page/no"):
        refused = httpx.get(url + path)
        assert refused.status_code == 401 and "<form" in refused.text and "nicegui" not in refused.text
    assert socket_status(url) == 403
    assert socket_status(url, cookie="murmuration_page=wrong") == 403
    assert socket_status(url, cookie=f"murmuration_page={key}") == 101
    browser.open(url)
    for typed, text in (("wrong", "not known here"), (key, "blocks")):
        browser.until(lambda: browser.run("return document.querySelector('#key') !== null"))
        browser.run("document.querySelector('#key').value = arguments[0]; document.forms[0].submit()", typed)
        browser.until_text(text)
    browser.until_text("complete", ".mm-verdict")
    assert key not in browser.run("return document.cookie"), "scripts do not read it"
    cookie = next(one for one in browser.driver.get_cookies() if one["name"] == "murmuration_page")
    assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == ("/page/", True, "Strict")
    assert httpx.get(url + "v1/models", cookies={"murmuration_page": key}).status_code == 401, "the API takes no cookie"
    api_keys.revoke(pool.folder / "keyed" / api_keys.FILE, "alice")
    assert httpx.get(url + "page/", cookies={"murmuration_page": key}).status_code == 401
    browser.driver.delete_all_cookies()


def test_pages_of_others_are_refused_and_responses_are_guarded(pool: ProcessPool, peer: str) -> None:
    gateway = serve(pool, "open", "tiny", "--peer", peer)
    url = home(gateway)
    own = url.rstrip("/")
    assert [socket_status(url, origin=origin) for origin in (own, "http://evil.example", "null")] == [101, 403, 403]
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        assert httpx.get(url + "page/", headers=headers).status_code == 403
    page = httpx.get(url + "page/")
    assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert httpx.put(url + "page/").status_code == 405
    assert httpx.get(url + "v1/no").json()["error"]["message"], "the APIs keep their own form of errors"
    counts = httpx.get(url + "metrics").text
    assert 'path="/page",status="200"' in counts and 'path="/page/' not in counts
    with connect(url.replace("http", "ws") + SOCKET):
        assert gateway.end(signal.SIGINT, 0.75 * server.DRAIN_S) == 130, "an open page keeps no gateway from ending"
