"""What one module has logged during a test.

A peer that an earlier test's client has shared still runs for a while in the background, and may log beside any test.
"""

from __future__ import annotations

import logging

import pytest


def logged(caplog: pytest.LogCaptureFixture, log: logging.Logger) -> list[str]:
    """The messages of this logger, oldest first."""
    return [record.getMessage() for record in caplog.records if record.name == log.name]
