"""A browser for all tests here."""

from __future__ import annotations

from tests.browser import browser as browser
from tests.node.cli.conftest import process_as_before as process_as_before
