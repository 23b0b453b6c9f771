"""Takes the pictures of the page in docs/: of a real swarm.

Three nodes of the demo's model, a gateway, and a training run; one node is killed in the middle of an answer, so that the list of events
has something to tell. Run: .venv/bin/python scripts/screenshots.py [DIRECTORY]      (2 minutes; the default directory is docs/)
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import MISSING, Browser, is_here, open_browser  # noqa: E402
from tests.end_to_end.processes import ProcessPool  # noqa: E402
from tests.end_to_end.training_swarm import TrainingSwarm, write_short_run  # noqa: E402
from tests.forked import ForkServer  # noqa: E402

QUESTION = "The assignment statement"
MODEL_SECONDS = 40


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
    first = pool.node(str(model), "--blocks", f"0:{half}", "--name", "kitchen")
    peer = ("--peer", first.said["multiaddr"])
    doomed = pool.node(str(model), "--blocks", f"{half}:{blocks}", "--name", "attic", *peer)
    pool.node(str(model), "--blocks", f"{half}:{blocks}", "--name", "cellar", *peer)
    run = write_short_run(pool.folder / "run", name="tiny-run", training__steps=400, evaluation__every_steps=10,
                          evaluation__samples=["The assert"])  # fmt: skip
    training = TrainingSwarm(pool, run, [first])
    training.node("trainee", "0:3", "--name", "trainee")
    training.trainer("trainer", "--name", "laptop")
    arguments = ["--no-lan", "--data-dir", str(pool.folder / "gateway"), "--runs-dir", str(training.folder.parent), "--port", "0"]
    gateway = pool.start("gateway", ["serve", "prose", *peer, *arguments])
    gateway.wait_for("ready")
    home = gateway.said["page"]
    _map_and_chat(browser, home, folder, lambda: doomed.send_signal(signal.SIGKILL))
    _others(browser, home, folder)


def _map_and_chat(browser: Browser, home: str, folder: Path, kill: Callable[[], None]) -> None:
    browser.size(1280, 800)
    browser.open(home)
    browser.until_text("complete", ".mm-verdict", 30)
    browser.open(f"{home}page/chat")
    browser.until_text("Send")
    for label, value in (("temperature", "0.7"), ("seed", "5"), ("most tokens", "120")):
        browser.driver.find_element("css selector", f"input[aria-label='{label}']").send_keys(value)
    browser.driver.find_element("css selector", "textarea").send_keys(f"{QUESTION}\n")
    browser.until(lambda: len(browser.text(".mm-log .mm-said:last-of-type")) > 10, 30)
    kill()
    browser.until_text("tokens read", ".mm-log", 60)
    browser.run("document.querySelectorAll('.mm-log details').forEach(one => one.open = true)")
    browser.size(1280, 1100)
    time.sleep(0.5)
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    _shoot(browser, folder / "page-chat.png")
    browser.open(home)
    browser.until_text("died", ".mm-events", 10)
    for name, width, scheme in (("page-map", 1280, "light"), ("page-map-dark", 1280, "dark"), ("page-map-narrow", 390, "dark")):
        browser.size(width, 760, scheme)
        time.sleep(1.0)
        _shoot(browser, folder / f"{name}.png")


def _others(browser: Browser, home: str, folder: Path) -> None:
    browser.size(1280, 900)
    browser.open(f"{home}page/training")
    browser.until_text("Samples of version", "main", 90)
    time.sleep(1.0)
    _shoot(browser, folder / "page-training.png")
    browser.open(f"{home}page/what-if")
    browser.until_text("prose", ".mm-model")
    next(one for one in browser.driver.find_elements("css selector", "button") if one.text == "Predict").click()
    browser.until_text("A token's way")
    _shoot(browser, folder / "page-what-if.png")


def _shoot(browser: Browser, file: Path) -> None:
    browser.shoot(file)
    print(file)


def _num_blocks(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


if __name__ == "__main__":
    sys.exit(main())
