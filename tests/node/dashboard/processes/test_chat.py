"""The chat in a browser: streamed, stopped, and unharmed by a death."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from node import api_keys
from tests.browser import Browser
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.dashboard.processes.test_map import home
from tests.node.gateway.processes.conftest import serve
from tests.node.gateway.processes.toy_gateway import checkpoint_with_long_context
from tests.speaking_model import make_speaker

LAST = ".mm-log article:last-child"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[ProcessPool]:
    with ProcessPool(tmp_path_factory.mktemp("chat"), fork_server) as made:
        yield made


@pytest.fixture(scope="module")
def nodes(pool: ProcessPool) -> dict[str, NodeProcess]:
    checkpoint = str(checkpoint_with_long_context(pool.folder / "tiny"))
    first = pool.node(checkpoint, "--blocks", "0:3", "--name", "first")
    joined = ("--peer", first.said["multiaddr"])
    return {
        "first": first,
        **{name: pool.node(checkpoint, "--blocks", "3:6", "--name", name, *joined) for name in ("left", "right")},
    }


def ask(browser: Browser, text: str, **settings: int) -> None:
    """Type settings into empty fields, by their labels, and a message, with keys alone."""
    for label, value in settings.items():
        field = browser.driver.find_element("css selector", f"input[aria-label='{label.replace('_', ' ')}']")
        field.send_keys(str(value))
    browser.driver.find_element("css selector", "textarea[aria-label='Your message']").send_keys(f"{text}\n")


def press_stop_soon(browser: Browser) -> None:
    """Press Stop at the first letters of the next answer, from within the page: a driver may be seconds late."""
    browser.run(
        "const press = setInterval(() => { const said = document.querySelector(arguments[0]);"
        "if (said && said.textContent.length > 20) {"
        "clearInterval(press); document.querySelectorAll('.mm-buttons button')[1].click() } }, 10)",
        f"{LAST} .mm-said",
    )


def leave_soon(browser: Browser, url: str, num_articles: int) -> None:
    """Go to another page at the first letters of the last of so many articles, from within the page as above."""
    browser.run(
        "const leave = setInterval(() => { const said = document.querySelector(arguments[0]);"
        "if (document.querySelectorAll('.mm-log article').length === arguments[1] && said && said.textContent.length > 20) {"
        "clearInterval(leave); location.href = arguments[2] } }, 10)",
        f"{LAST} .mm-said",
        num_articles,
        url,
    )


def links_of(browser: Browser) -> list[str]:
    """Names of nodes on the map."""
    found: list[str] = browser.run("return [...document.querySelectorAll('.mm-grid a')].map(one => one.innerText)")
    return found


def said(browser: Browser) -> str:
    return browser.text(f"{LAST} .mm-said")


def test_a_chat_goes_on_while_a_node_is_killed_and_the_map_tells_it(
    browser: Browser, pool: ProcessPool, nodes: dict[str, NodeProcess]
) -> None:
    url = home(serve(pool, "gateway", "tiny", "--peer", nodes["first"].said["multiaddr"]))
    browser.open(url + "page/chat")
    browser.until_text("Send")
    ask(browser, "hello", most_tokens=300)
    browser.until_text("300 tokens answered", LAST)
    undisturbed = said(browser)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    details = browser.text(f"{LAST} details")
    assert "T7 computed at the hops" in details and "T8 crossed the network" in details and "first …" in details
    (used,) = [name for name in ("left", "right") if f"{name} …" in details]
    _leave_and_come_back(browser, url, undisturbed)
    chat = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(url)
    browser.until_text("every block has 1 node or more", ".mm-verdict")
    the_map = browser.driver.current_window_handle
    browser.driver.switch_to.window(chat)
    for number in range(2):  # a new conversation, also in the middle of an answer
        browser.driver.find_elements("css selector", ".mm-plain")[0].click()
        browser.until(lambda: not browser.text(".mm-log"))
        if not number:
            ask(browser, "something else")
            browser.until(lambda: len(said(browser)) > 20)
    with pool.pace.slow():
        ask(browser, "hello")
        browser.until(lambda: len(said(browser)) > 20)
        nodes[used].send_signal(signal.SIGKILL)
        assert nodes[used].has_ended(60)
    browser.until_text("1 node lost on the way, and replaced", LAST)
    browser.until(lambda: said(browser) == undisturbed)  # no token changes; the last ones may come behind the number of nodes
    browser.driver.switch_to.window(the_map)
    browser.until_text("failover", ".mm-events")
    events = browser.text(".mm-events")
    assert ("took over" in events or "lost a node, and goes on over" in events) and "died" in events and used in events
    link = next(link for link in links_of(browser) if link.startswith("first"))
    browser.on(lambda: browser.driver.find_element("link text", link), lambda found: found.click())
    browser.until_text("runs for", "section[aria-label='Machine and work']")
    about = browser.text("section[aria-label='Machine and work']")
    assert "4 sessions" in about or "3 sessions" in about, about  # the answer that was left may not have begun
    assert "cores" in about and "torch" in about and "GB" in about
    assert browser.faults() == []
    browser.driver.close()
    browser.driver.switch_to.window(chat)


def _leave_and_come_back(browser: Browser, url: str, answer: str) -> None:
    """The conversation is there again, what has come of an answer that leaving has ended, too, and a new one is empty."""
    browser.until(lambda: not browser.run("return window.mmChat.isAnswering"))  # the answer is kept
    browser.open(url)
    browser.until_text("complete", ".mm-verdict")
    browser.open(url + "page/chat")
    browser.until(lambda: said(browser) == answer)
    assert "300 tokens answered" in browser.text(LAST)
    assert browser.run("return document.querySelector(`input[aria-label='most tokens']`).value") == "300"
    leave_soon(browser, url + "page/chat", 4)
    ask(browser, "and then?")
    browser.until_text("ended: the page was left", LAST)
    browser.faults()  # the page that was left lost its socket
    assert len(said(browser)) > 20 and "and then?" in browser.text(".mm-log")
    browser.driver.find_elements("css selector", ".mm-plain")[0].click()
    browser.until(lambda: not browser.text(".mm-log"))
    browser.open(url + "page/chat")
    browser.until_text("Send")
    assert not browser.text(".mm-log")
    ask(browser, "", most_tokens=300)  # settings are kept with a conversation


def test_thoughts_are_folded_away_and_are_no_part_of_the_answer(browser: Browser, pool: ProcessPool) -> None:
    says = {":": "<think>", "<think>": "\nHm.", "\nHm.": "</think>", "</think>": "\n\nIt is 42."}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}</think>{% endif %}:"
    node = pool.node(str(make_speaker(pool.folder / "thinker", template, says)))
    browser.open(home(serve(pool, "thinking", "thinker", "--peer", node.said["multiaddr"])) + "page/chat")
    browser.until_text("Send")
    ask(browser, "hello")
    browser.until_text("tokens answered", LAST)
    assert said(browser) == "It is 42." and "Hm." not in browser.text(LAST)
    browser.run("document.querySelector(arguments[0]).open = true", f"{LAST} details")
    assert browser.text(f"{LAST} .mm-thoughts") == "Hm."
    assert browser.faults() == []


def test_stop_ends_an_answer_and_a_refusal_is_shown(browser: Browser, pool: ProcessPool, nodes: dict[str, NodeProcess]) -> None:
    """A key's budget holds for the page, too."""
    key = api_keys.add(pool.folder / "keyed" / api_keys.FILE, "alice", time.time(), requests_per_minute=2)
    url = home(serve(pool, "keyed", "tiny", "--peer", nodes["first"].said["multiaddr"]))
    browser.open(url + "page/login")
    browser.run("document.querySelector('#key').value = arguments[0]; document.forms[0].submit()", key)
    browser.until_text("complete", ".mm-verdict")
    browser.open(url + "page/chat")
    browser.until_text("Send")
    press_stop_soon(browser)
    ask(browser, "hello", most_tokens=900)
    browser.until_text("stopped", LAST)
    browser.driver.find_elements("css selector", ".mm-buttons button")[
        2
    ].click()  # else there may be no place for 900 tokens more
    browser.until(lambda: not browser.driver.find_elements("css selector", LAST))
    press_stop_soon(browser)
    ask(browser, "again")
    browser.until_text("stopped", LAST)
    ask(browser, "once more")
    browser.until_text("this key may send 2 requests a minute", LAST)
    assert browser.run("return Object.keys(sessionStorage).some(name => name.startsWith('murmuration chat '))")
    assert browser.faults() == []
    browser.open(url + "page/login")
    assert not browser.run("return Object.keys(sessionStorage).some(name => name.startsWith('murmuration chat '))"), (
        "it ends with the key"
    )
    browser.driver.delete_all_cookies()
