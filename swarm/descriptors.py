"""Raises the limit of open files to what is allowed."""

from __future__ import annotations

import resource

MAX_DESCRIPTORS = 65_536
"""More is never asked for: some programs walk through all numbers that they may have."""

_FEWER = (MAX_DESCRIPTORS, 24_576, 10_240, 4_096)
"""macOS refuses more than its kernel gives a process, whatever the limit says."""


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one; the limit that is in force now. Child processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _FEWER:
        target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and target > soft:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
                break
            except (ValueError, OSError):
                continue
    return limit()


def limit() -> int:
    """The soft limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
