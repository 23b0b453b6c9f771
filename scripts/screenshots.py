"""Takes the pictures of the page in docs/: of a real swarm.

Three nodes of the demo's model, a gateway, and a training run; one node is killed in the middle of an answer, so that the list of events
has something to tell. Every page is taken wide, and 390 points wide in light and dark.

Run: .venv/bin/python scripts/screenshots.py [DIRECTORY]      (4 minutes; the default directory is docs/)
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from swarm.peer import operator  # noqa: E402
from tests.browser import MISSING, Browser, is_here, open_browser  # noqa: E402
from tests.end_to_end.processes import ProcessPool  # noqa: E402
from tests.end_to_end.training_swarm import TrainingSwarm, write_short_run  # noqa: E402
from tests.forked import ForkServer  # noqa: E402

QUESTION = "The assignment statement"
MODEL_SECONDS = 40
WIDE, NARROW = (1280, 800), (390, 844)
MAX_HEIGHT = 1_600
SAMPLED = 200
"""The least version whose sample is in the picture: an earlier one says nothing but spaces."""

COLOURS = 128
"""Of a sheet: a third of the bytes."""

GAP = 12
"""Between two narrow pictures of one sheet, in pixels."""

SHOWN = {
    "map": (("every block", ".mm-verdict"),),
    "chat": (("tokens answered", ".mm-log"),),
    "peer": (("runs for", "main"), ("decoder/", "main")),
    "training": (("Samples at version", "main"), ("micro-batch", "main")),
    "what-if": (("prose", ".mm-model"),),
}
"""By page, texts and where they stand: the page is whole once they are there."""


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    if not is_here():
        print(MISSING, file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as temporary,
        ForkServer() as server,
        ProcessPool(Path(temporary), server) as pool,
        open_browser() as browser,
    ):
        take(pool, browser, folder)
    return 0


def take(pool: ProcessPool, browser: Browser, folder: Path) -> None:
    """All pictures."""
    model = pool.folder / "prose"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_model.py", model, "--seconds", str(MODEL_SECONDS)], check=True)
    blocks = _num_blocks(model)
    half = blocks // 2
    key, operators = pool.folder / "operator.key", pool.folder / "operators.txt"
    operators.write_text(f"{operator.make(key)}\n")
    first = pool.node(str(model), "--blocks", f"0:{half}", "--name", "kitchen", "--operators", str(operators))
    peer = ("--peer", first.said["multiaddr"])
    doomed = pool.node(str(model), "--blocks", f"{half}:{blocks}", "--name", "attic", *peer)
    pool.node(str(model), "--blocks", f"{half}:{blocks}", "--name", "cellar", *peer)
    run = write_short_run(pool.folder / "run", name="tiny-run", training__steps=2_000, evaluation__every_steps=10,
                          evaluation__samples=["The assert"], serving__every_versions=10)  # fmt: skip
    training = TrainingSwarm(pool, run, [first])
    training.node("trainee", "0:3", "--name", "trainee")
    training.trainer("trainer", "--name", "laptop")
    arguments = ["--no-lan", "--data-dir", str(pool.folder / "gateway"), "--runs-dir", str(training.folder.parent), "--port", "0"]
    gateway = pool.start("gateway", ["serve", "prose", *peer, *arguments, "--operator-key", str(key)])
    gateway.wait_for("ready")
    home = gateway.said["page"]
    pages = {
        "map": home,
        "chat": f"{home}page/chat",
        "peer": f"{home}page/peer/{first.said['peer']}",
        "training": f"{home}page/training",
        "what-if": f"{home}page/what-if",
    }
    _chat(browser, pages["chat"], lambda: doomed.send_signal(signal.SIGKILL))
    browser.open(home)
    browser.until_text("died", ".mm-events", 10)  # before it is forgotten
    for page, url in pages.items():
        _wide(browser, page, url, folder)
    _orders(browser, f"{pages['peer']}?order=drain", folder)
    browser.devtools("Emulation.setScrollbarsHidden", hidden=True)  # as on a telephone
    for scheme in ("light", "dark"):
        narrow = [_narrow(browser, page, url, scheme, pool.folder) for page, url in pages.items()]
        _beside(narrow, folder / f"page-narrow-{scheme}.png")


def _chat(browser: Browser, url: str, kill: Callable[[], None]) -> None:
    """A question, and a death in the middle of its answer; the tab keeps both."""
    browser.size(*WIDE)
    browser.open(url)
    browser.until_text("Send")
    for label, value in (("temperature", "0.7"), ("seed", "5"), ("most tokens", "120")):
        browser.driver.find_element("css selector", f"input[aria-label='{label}']").send_keys(value)
    browser.driver.find_element("css selector", "textarea").send_keys(f"{QUESTION}\n")
    browser.until(lambda: len(browser.text(".mm-log .mm-said:last-of-type")) > 10, 30)
    kill()
    browser.until_text("tokens read", ".mm-log", 60)


def _wide(browser: Browser, page: str, url: str, folder: Path) -> None:
    schemes = ("light", "dark") if page == "map" else ("light",)
    for scheme in schemes:
        browser.size(*WIDE, scheme)
        _open(browser, page, url)
        _whole(browser, WIDE[0], scheme, WIDE[1] if page == "map" else MAX_HEIGHT)
        _shoot(browser, folder / f"page-{page}{'' if scheme == 'light' else '-dark'}.png")


def _orders(browser: Browser, url: str, folder: Path) -> None:
    browser.size(WIDE[0], 660)
    browser.open(url)
    browser.until_text("Cancel", ".mm-confirm", 30)
    time.sleep(0.5)
    _shoot(browser, folder / "page-orders.png")


def _narrow(browser: Browser, page: str, url: str, scheme: str, folder: Path) -> Path:
    browser.size(*NARROW, scheme)
    _open(browser, page, url)
    assert browser.run("return document.documentElement.scrollWidth") <= NARROW[0], f"{page} scrolls sideways"
    file = folder / f"{page}-{scheme}.png"
    _shoot(browser, file)
    return file


def _open(browser: Browser, page: str, url: str) -> None:
    """Until everything is there that the picture shows."""
    browser.open(url)
    for text, selector in SHOWN[page]:
        browser.until_text(text, selector, 120)
    if page == "training":
        browser.until(lambda: _sampled(browser) >= SAMPLED, 240, "a model that says words")
    if page == "chat":
        _ask_again(browser, is_anew=bool(browser.run("return innerWidth < 600")))
    if page == "what-if":
        next(one for one in browser.driver.find_elements("css selector", "button") if one.text == "Predict").click()
        browser.until_text("A token's way")
    time.sleep(1.0)
    browser.run("window.scrollTo(0, 0)")


def _sampled(browser: Browser) -> int:
    """The version whose sample is shown."""
    found = re.search(r"Samples at version (\d+)", browser.text("main"))
    return int(found[1]) if found else 0


def _ask_again(browser: Browser, *, is_anew: bool) -> None:
    """An answer of this page has its route; those before are texts. is_anew: without those, which the model has no context for."""
    if is_anew:
        next(one for one in browser.driver.find_elements("css selector", "button") if one.text == "New conversation").click()
        browser.until(lambda: not browser.text(".mm-log"))
    browser.driver.find_element("css selector", "textarea").send_keys(f"{QUESTION if is_anew else 'And then?'}\n")
    browser.until_text("Route and timings", ".mm-log article:last-child", 60)
    browser.run("document.querySelectorAll('.mm-log details').forEach(one => one.open = true)")


def _whole(browser: Browser, width: int, scheme: str, most: int) -> None:
    """A window that is as high as the page."""
    height = int(browser.run("return document.documentElement.scrollHeight"))
    browser.size(width, min(most, height), scheme)
    time.sleep(0.5)
    browser.run("window.scrollTo(0, 0)")


def _beside(files: Sequence[Path], target: Path) -> None:
    """Several pictures as one."""
    from PIL import Image

    pictures = [Image.open(file) for file in files]
    sheet = Image.new("RGB", (sum(one.width for one in pictures) + GAP * (len(pictures) - 1), pictures[0].height), "#808690")
    left = 0
    for one in pictures:
        sheet.paste(one, (left, 0))
        left += one.width + GAP
    sheet.quantize(COLOURS).save(target, optimize=True)
    print(target)


def _shoot(browser: Browser, file: Path) -> None:
    browser.shoot(file)
    print(file)


def _num_blocks(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


if __name__ == "__main__":
    sys.exit(main())
