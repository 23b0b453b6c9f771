"""One check: what was found, and how to put it right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "failed", "skipped"]
"""warning: something works less well; failed: something does not work; skipped: it could not be checked here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check says."""

    name: str
    """One word, as `disk`; scripts may rely on it."""

    verdict: Verdict
    found: str
    """What there is, in one line."""

    fix: str = ""
    """The next step; empty if nothing is wrong."""


def ok(name: str, found: str) -> Check:
    return Check(name=name, verdict="ok", found=found)


def warning(name: str, found: str, fix: str) -> Check:
    return Check(name=name, verdict="warning", found=found, fix=fix)


def failed(name: str, found: str, fix: str) -> Check:
    return Check(name=name, verdict="failed", found=found, fix=fix)


def skipped(name: str, found: str, fix: str = "") -> Check:
    return Check(name=name, verdict="skipped", found=found, fix=fix)


def is_healthy(checks: Iterable[Check]) -> bool:
    """True if no check has failed."""
    return all(one.verdict != "failed" for one in checks)
