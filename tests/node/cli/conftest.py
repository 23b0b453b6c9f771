"""Undoes what a command sets for its whole process after each test."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator

import pytest

from node import logs

VARIABLES = (
    "HIVEMIND_LOGLEVEL",
    "TRANSFORMERS_VERBOSITY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TOKENIZERS_PARALLELISM",
    "GRPC_VERBOSITY",
)


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Loggers, warning filters and environment of this process."""
    before = [(logging.getLogger(name), logging.getLogger(name).level, logging.getLogger(name).handlers) for name in logs.OURS]
    environment = {name: os.environ.get(name) for name in VARIABLES}
    with warnings.catch_warnings():
        yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers = handlers
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
