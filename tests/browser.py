"""A headless Chromium for tests of pages, driven by selenium."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

PROGRAMS = ("chromium", "chromedriver")
MISSING = "no chromium and chromedriver here: apt-get install chromium chromium-driver"
FIRST_S = 60.0
"""How long a page may take to show something, on a busy machine."""


class Browser:
    """One window. `driver` is selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page; its faults are counted from here on."""
        self.driver.get("about:blank")  # the page before loses its server, and says so
        self.faults()
        self.driver.get(url)

    def text(self, selector: str = "body") -> str:
        """What a person reads; empty if there is no such element."""
        found: str = self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return found

    def run(self, script: str, *arguments: object) -> Any:
        """JavaScript; what it returns."""
        return self.driver.execute_script(script, *arguments)

    def devtools(self, command: str, **parameters: object) -> Mapping[str, Any]:
        """One command of the DevTools protocol."""
        answer: Mapping[str, Any] = self.driver.execute_cdp_cmd(command, parameters)
        return answer

    def until(self, condition: Callable[[], T], within_s: float = FIRST_S, what: str = "") -> T:
        """Wait until it holds; AssertionError with the page's text if it does not in time."""
        ends_s = time.monotonic() + within_s
        while not (found := condition()):
            assert time.monotonic() < ends_s, (
                f"{what or condition} does not hold after {within_s} s; the page says:\n{self.text()}"
            )
            time.sleep(0.02)
        return found

    def on(self, find: Callable[[], T], act: Callable[[T], object]) -> None:
        """Find an element and act on it; both again if the page has drawn it anew in between."""
        from selenium.common.exceptions import StaleElementReferenceException

        def has_acted() -> bool:
            try:
                act(find())
            except StaleElementReferenceException:
                return False
            return True

        self.until(has_acted, what="acting on an element")

    def until_text(self, text: str, selector: str = "body", within_s: float = FIRST_S) -> None:
        """Wait until the element has this text somewhere."""
        self.until(lambda: text in self.text(selector), within_s, f"{text!r} in {selector}")

    def size(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """The window's size, and the colours that its person prefers."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def faults(self) -> list[str]:
        """Errors that the page has logged since the last time."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]

    def shoot(self, file: Path) -> None:
        """A picture of the window."""
        assert self.driver.save_screenshot(str(file))


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A fresh one; the caller has looked if there is one (`is_here`)."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which(PROGRAMS[0]))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which(PROGRAMS[1]))))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def is_here() -> bool:
    """Are both programs installed?"""
    return all(map(shutil.which, PROGRAMS))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all tests of a package; each opens its own page."""
    if not is_here():
        pytest.skip(MISSING)
    with open_browser() as made:
        yield made
