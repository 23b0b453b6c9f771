"""An operator's buttons in a browser, over real nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from node import api_keys
from protocols.identity import from_seed
from swarm.peer import operator
from tests.browser import Browser
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.dashboard.processes.test_chat import LAST, ask, said
from tests.node.dashboard.processes.test_door import socket_status
from tests.node.dashboard.processes.test_map import home
from tests.node.gateway.processes.conftest import serve
from tests.node.gateway.processes.toy_gateway import checkpoint_with_long_context

CARD = "section[aria-label='Operator']"
BANNED = from_seed(b"b" * 32).peer_id
SOON_S = 60.0


@dataclass
class Fleet:
    """Nodes that obey one operator, one that does not, and a gateway with the operator's key."""

    pool: ProcessPool
    key: Path
    nodes: dict[str, NodeProcess]

    @property
    def peer(self) -> str:
        return self.nodes["first"].said["multiaddr"]

    def page_of(self, url: str, name: str) -> str:
        return f"{url}page/peer/{self.nodes[name].said['peer']}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[Fleet]:
    with ProcessPool(tmp_path_factory.mktemp("orders"), fork_server) as pool:
        key, listed = pool.folder / "operator.key", pool.folder / "operators.txt"
        listed.write_text(f"{operator.make(key)}\n")
        checkpoint, obeys = str(checkpoint_with_long_context(pool.folder / "tiny")), ("--operators", str(listed))
        first = pool.node(checkpoint, "--blocks", "0:3", "--name", "first")
        joined = ("--peer", first.said["multiaddr"])
        left = pool.node(checkpoint, "--blocks", "3:6", "--name", "left", *joined, *obeys, "--test-swarm")
        right = pool.node(checkpoint, "--blocks", "3:6", "--name", "right", *joined, *obeys, "--test-swarm")
        yield Fleet(pool, key, {"first": first, "left": left, "right": right})


@pytest.fixture(scope="module")
def url(fleet: Fleet) -> str:
    return home(serve(fleet.pool, "gateway", "tiny", "--peer", fleet.peer, "--operator-key", str(fleet.key), "--patience", "5"))


def chat(browser: Browser, url: str, **settings: int) -> None:
    """Ask in a page that is connected, of a new tab: a tab keeps its conversation and settings."""
    browser.driver.switch_to.new_window("tab")
    browser.open(url + "page/chat")
    browser.until_text("Send")
    browser.until(lambda: browser.run("return window.socket?.connected"), SOON_S, "the page is connected")
    ask(browser, "hello", **settings)


def has_focus(browser: Browser) -> bool:
    """The question that was opened; a key that is pressed before goes where the focus was."""
    return bool(browser.run("return document.activeElement.id") == "mm-confirm")


def close_tab(browser: Browser) -> None:
    """Back to the one before."""
    browser.driver.close()
    browser.driver.switch_to.window(browser.driver.window_handles[-1])


def begin_anew(browser: Browser) -> None:
    """Press until it helps: a page that has just come to the front may be late."""

    def pressed() -> bool:
        browser.driver.find_elements("css selector", ".mm-plain")[0].click()
        return not browser.text(".mm-log")

    browser.until(pressed, SOON_S, "a new conversation")


def press(browser: Browser, text: str, within: str = CARD) -> None:
    """Click the button whose text begins so."""
    script = "return [...document.querySelectorAll(arguments[0] + ' button')].find(one => one.innerText.trim().startsWith(arguments[1]))"

    def button() -> Any:
        return browser.until(lambda: browser.run(script, within, text), SOON_S, f"a button {text!r}")

    browser.on(button, lambda found: browser.run("arguments[0].click()", found))


def order(browser: Browser, text: str, done: str) -> str:
    """Press a button, say yes, and wait for what was done; the question."""
    press(browser, text)
    browser.until_text("Cancel", CARD)
    question = browser.text(f"{CARD} .mm-confirm")
    press(browser, "Yes", f"{CARD} .mm-confirm")
    browser.until_text(done, CARD, SOON_S)
    return question


def test_a_node_is_drained_while_a_chat_streams_and_no_token_changes(browser: Browser, fleet: Fleet, url: str) -> None:
    chat(browser, url, most_tokens=400)
    browser.until_text("400 tokens answered", LAST, 90)
    undisturbed = said(browser)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    (used,) = [name for name in ("left", "right") if f"{name} …" in browser.text(f"{LAST} details")]
    chatting = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(fleet.page_of(url, used))
    press(browser, "Drain")
    browser.until_text("Cancel", CARD)
    question = browser.text(f"{CARD} .mm-confirm")
    assert used in question and "Only its owner can start it again" in question and "No other node" not in question
    drained = browser.driver.current_window_handle
    browser.driver.switch_to.window(chatting)
    begin_anew(browser)
    with fleet.pool.pace.slow():
        ask(browser, "hello")
        browser.until(lambda: len(said(browser)) > 20)
        browser.driver.switch_to.window(drained)
        press(browser, "Yes", f"{CARD} .mm-confirm")
        browser.until_text("leaves the swarm: 1 open session", CARD, SOON_S)
    browser.driver.close()
    browser.driver.switch_to.window(chatting)
    browser.until_text("400 tokens answered", LAST, 90)
    browser.until(lambda: said(browser) == undisturbed)
    node = fleet.nodes.pop(used)
    assert node.has_ended(60) and node.code == 0, node.last_words()
    fleet.nodes["other"] = fleet.nodes.pop("right" if used == "left" else "left")
    browser.open(url)
    browser.until_text("left", ".mm-events")
    events = browser.text(".mm-events")
    close_tab(browser)
    assert "order" in events and f"this machine: drain at {used} …" in events and "died" not in events
    assert browser.faults() == []


def test_pause_resume_and_bans(browser: Browser, fleet: Fleet, url: str) -> None:
    """By the keyboard alone, where it is pressed first."""
    browser.open(fleet.page_of(url, "other"))
    browser.until_text("It takes new sessions", CARD, SOON_S)
    press(browser, "Pause")
    browser.until(lambda: has_focus(browser), what="the question has the focus")
    assert "No other node serves 3 of the 6 blocks of tiny" in browser.text(f"{CARD} .mm-confirm")
    active = browser.driver.switch_to.active_element
    active.send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.text == "Yes: pause"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.until_text("paused: no new session begins", CARD, SOON_S)
    browser.until_text("It is paused", CARD)
    browser.driver.switch_to.new_window("tab")
    browser.open(url)
    browser.until_text("missing: blocks 3:6", ".mm-verdict", SOON_S)
    browser.until_text("paused", ".mm-grid")
    assert "its operator has paused it" in browser.text(".mm-events")
    close_tab(browser)
    order(browser, "Resume", "takes new sessions again")
    press(browser, "Ban a peer there")
    browser.until_text("Cancel", CARD)
    press(browser, "Yes", f"{CARD} .mm-confirm")
    browser.until_text("not an Ed25519 PeerID", CARD)
    press(browser, "Ban a peer there")
    browser.until(lambda: has_focus(browser), what="the question has the focus")
    field = browser.driver.find_element("css selector", f"{CARD} input[aria-label='PeerID']")
    field.send_keys(BANNED)
    press(browser, "Yes", f"{CARD} .mm-confirm")
    browser.until_text(f"bans …{BANNED[-6:]} for 1 hour more", CARD, SOON_S)
    order(browser, "Lift", "is banned no more")
    browser.until(lambda: "more" not in browser.text(f"{CARD} .mm-bans"))
    assert "Other clients are not touched" in order(
        browser, "Let this gateway avoid it", "no answer of this gateway goes over it"
    )
    chat(browser, url, most_tokens=5)
    browser.until_text("no live peer", LAST, 90)
    close_tab(browser)
    browser.open(fleet.page_of(url, "other"))
    order(browser, "Let this gateway use it again", "may go over it again")
    chat(browser, url, most_tokens=5)
    browser.until_text("5 tokens answered", LAST, 90)
    close_tab(browser)
    assert browser.faults() == []


def dots(browser: Browser) -> list[str]:
    found: list[str] = browser.run("return [...document.querySelectorAll('.mm-dots')].map(one => one.ariaLabel)")
    return found


def test_the_maps_menu_leads_to_the_question_and_a_kill_is_a_death(browser: Browser, fleet: Fleet, url: str) -> None:
    browser.size(390)
    browser.open(url)
    label = browser.until(lambda: next(iter(dots(browser)), ""), SOON_S, "a menu")
    assert len(dots(browser)) == 1 and label.startswith("Orders to ") and "first" not in label, (
        "a node that obeys another has none"
    )
    browser.on(lambda: browser.driver.find_element("css selector", ".mm-dots"), lambda menu: menu.send_keys(Keys.ENTER))
    browser.until(lambda: browser.run("return document.querySelector('[popover]:popover-open') !== null"))
    assert [one.strip() for one in browser.text("[popover]").split("\n")][1:] == [
        "Pause…",
        "Drain…",
        "Kill…",
        "Ban a peer there…",
    ]
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    box = browser.run(
        "const box = document.querySelector('[popover]').getBoundingClientRect(); return [box.left, box.right, box.height]"
    )
    assert 0 <= box[0] < box[1] <= 390 and box[2] < 400
    menu = partial(browser.driver.find_element, "css selector", "[popover]")
    browser.on(lambda: menu().find_element("link text", "Kill…"), lambda link: link.click())
    browser.until_text("Its process ends at once", f"{CARD} .mm-confirm", SOON_S)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    press(browser, "Yes", f"{CARD} .mm-confirm")
    browser.until_text("its process ends now", CARD, SOON_S)
    node = fleet.nodes.pop("other")
    assert node.has_ended(60) and node.code == -9
    browser.open(url)
    browser.until_text("died", ".mm-events")
    assert browser.faults() == []
    browser.size(1280)


def enter(browser: Browser, url: str, key: str) -> None:
    browser.driver.delete_all_cookies()
    browser.open(url + "page/login")
    browser.run("document.querySelector('#key').value = arguments[0]; document.forms[0].submit()", key)
    browser.until(lambda: browser.driver.find_elements("css selector", ".mm-grid"), SOON_S)


def test_an_ordinary_key_sees_no_button_and_a_revoked_one_presses_in_vain(browser: Browser, fleet: Fleet) -> None:
    keys = fleet.pool.folder / "keyed" / api_keys.FILE
    alice, olga = (api_keys.add(keys, name, time.time(), is_operator=name == "olga") for name in ("alice", "olga"))
    listed = fleet.pool.folder / "operators.txt"
    spare = fleet.pool.node(
        str(fleet.pool.folder / "tiny"), "--blocks", "3:6", "--name", "spare", "--peer", fleet.peer, "--operators", str(listed)
    )
    fleet.nodes["spare"] = spare
    friend = ("--allow-origin", "http://friend.example")
    url = home(serve(fleet.pool, "keyed", "tiny", "--peer", fleet.peer, "--operator-key", str(fleet.key), *friend))
    cookie = f"murmuration_page={olga}"
    assert socket_status(url, cookie=cookie) == 101
    for origin in ("http://friend.example", "http://evil.example"):  # the first one may use the API, and no more
        assert socket_status(url, cookie=cookie, origin=origin) == 403
    assert {
        path for path in httpx.get(url + "openapi.json", headers={"x-api-key": olga}).json()["paths"] if "order" in path
    } == set()
    enter(browser, url, olga)
    assert browser.until(lambda: dots(browser), SOON_S)
    enter(browser, url, alice)
    browser.until_text("spare", ".mm-grid", SOON_S)
    assert not dots(browser)
    browser.open(fleet.page_of(url, "spare") + "?order=drain")
    browser.until_text("PeerID")
    assert "Operator" not in browser.text() and "Drain" not in browser.text()
    enter(browser, url, olga)
    browser.open(fleet.page_of(url, "first"))
    browser.until_text("takes no orders from this page's operator", CARD, SOON_S)
    browser.open(fleet.page_of(url, "spare"))
    browser.until_text("Pause", CARD, SOON_S)
    assert "Kill" not in browser.text(CARD), "it is not of a test swarm"
    order(browser, "Pause", "paused: no new session begins")
    order(browser, "Resume", "takes new sessions again")
    press(browser, "Drain")
    browser.until_text("Cancel", CARD)
    api_keys.revoke(keys, "olga")
    browser.run("document.querySelector('.mm-confirm button')?.click()")  # unless the page has heard of it already
    browser.until(
        lambda: browser.run("return document.querySelector(arguments[0]).offsetParent === null", CARD), SOON_S, "it is gone"
    )
    assert "Drain" not in browser.text()
    assert not spare.has_ended(1)
    spare.hear()
    assert [line.split(",")[0] for line in spare.lines if line.startswith("order")] == ["order: pause", "order: resume"]
    browser.driver.delete_all_cookies()


def test_a_nodes_own_page_gives_orders_too(browser: Browser, fleet: Fleet) -> None:
    """With its operator's key; no answer goes out there, so there is nothing to avoid."""
    keys = ("--operators", str(fleet.pool.folder / "operators.txt"), "--dashboard", "0", "--operator-key", str(fleet.key))
    node = fleet.pool.node(str(fleet.pool.folder / "tiny"), "--name", "own", "--peer", fleet.peer, *keys)
    browser.open(f"{node.wait_for('page')}page/peer/{node.said['peer']}")
    browser.until_text("Pause", CARD, SOON_S)
    assert "avoid" not in browser.text(CARD)
    order(browser, "Pause", "paused: no new session begins")
    order(browser, "Drain", "leaves the swarm")
    assert node.has_ended(60) and node.code == 0, node.last_words()
    browser.run("window.stop()")
