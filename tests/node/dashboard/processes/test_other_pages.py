"""The pages of a peer and of what-if in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from node.dashboard.dashboard import Dashboard
from node.dashboard.estimates import Estimates
from node.watching.what_if import Sizes
from protocols.ids import ModelId
from protocols.records import PeerRecord
from tests.browser import Browser
from tests.families import make_checkpoint
from tests.node.dashboard.made_swarm import MadeSource, many, serving


async def _sizes(model: ModelId, records: Sequence[PeerRecord]) -> Sizes:
    return Sizes(name=model.name, num_blocks=32, block_bytes=100_000_000)


def _more(dashboard: Dashboard) -> None:
    dashboard.estimates = Estimates(dashboard.watcher, _sizes)
    dashboard.may_read_directories = lambda: True


def click(browser: Browser, text: str, number: int = 0) -> None:
    def press(found: list[Any]) -> None:
        [one for one in found if one.text == text][number].click()

    browser.on(lambda: browser.driver.find_elements("css selector", "button"), press)


def test_every_way_in_the_head_leads_to_its_page(browser: Browser) -> None:
    with serving(MadeSource(many(12, 32))) as url:
        browser.open(f"{url}no/such/page")
        browser.until_text("there is no page at this address")
        heads = {"Chat": "Chat with a model", "Training": "Training runs", "What-if": "What if these", "Map": "complete"}
        for text, shown in heads.items():
            browser.until(lambda: browser.run("return window.path_prefix !== undefined"), what="NiceGUI has changed its links")
            browser.run(f"[...document.querySelectorAll('nav a')].find(one => one.innerText === '{text}').click()")
            browser.until_text(shown, "#content")
            assert browser.text("nav a[aria-current]") == text
        browser.run("document.querySelector('.mm-title').click()")
        browser.until_text("complete", "#content")


def test_a_peer_has_a_page_and_a_model_of_any_size_is_placed(browser: Browser, tmp_path: Path) -> None:
    source = MadeSource(many(12, 32))
    with serving(source, _more) as url:
        browser.open(url)
        browser.until_text("complete", ".mm-verdict")
        browser.run("document.querySelector('.mm-grid tbody a').click()")
        browser.until_text("PeerID", ".mm-facts")
        assert "another peer has dialled it back" in browser.text(".mm-facts") and "decoder/0:16" in browser.text(".mm-table")
        source.silent.update(record.peer for record in source.records)
        browser.until_text("Start it again", ".mm-fixes")
        source.silent.clear()
        browser.open(url)
        browser.until_text("complete", ".mm-verdict")
        browser.open(f"{url}peer/nobody")
        browser.until_text("no such peer is announced", ".mm-problem")
        assert "Machine and work" not in browser.text(), "cards of nothing"
        browser.open(f"{url}no/such/page")
        browser.until_text("there is no page at this address")
        browser.open(f"{url}what-if")
        browser.until_text("tiny", ".mm-model")
        click(browser, "Predict")
        browser.until_text("as it announces; 0 waiting")
        click(browser, "Predict", 1)
        browser.until_text("7B: 32 blocks of 437.5 MB")
        assert (
            "tokens/s for one stream" in browser.text("section[aria-label='Result']") and "no node hosts them" in browser.text()
        )
        name, directory = browser.driver.find_elements("css selector", ".mm-system input")
        checkpoint = make_checkpoint("llama", tmp_path / "small")
        directory.send_keys(str(checkpoint))
        click(browser, "Predict", 3)
        browser.until_text("small: ", "section[aria-label='Result']")
        name.send_keys("tiny")
        click(browser, "Predict", 2)
        browser.until_text("tiny: 32 blocks of 100.0 MB", "section[aria-label='Result']")
        name.send_keys("/nowhere")
        click(browser, "Predict", 2)
        browser.until_text("has no config.json in the Hugging Face cache of this machine", ".mm-problem")
        assert browser.faults() == []
