"""The emulated wide-area network of the benchmarks, made by wan.py.

Each host is a network namespace of this machine; `shared/tools/wan.py` lies beside the repository and needs root.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from volunteers import VolunteerError

RTT_MS, RATE_MBIT = 100.0, 100.0
"""Between any two hosts, and of each host's link in each direction."""


def tool() -> Path | None:
    """wan.py, if it is there."""
    found = [folder / "shared" / "tools" / "wan.py" for folder in Path(__file__).resolve().parents]
    return next((path for path in found if path.exists()), None)


def wide_network(num_hosts: int) -> Any:
    """`Wan` of wan.py, to be used as a context. VolunteerError if it cannot run here."""
    path = tool()
    if path is None or os.geteuid() != 0:
        raise VolunteerError("the wide area needs root and shared/tools/wan.py beside the repository: leave it out with --only")
    spec = importlib.util.spec_from_file_location("wan", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wan"] = module
    spec.loader.exec_module(module)
    return module.Wan(hosts=num_hosts, rtt_ms=RTT_MS, rate_mbit=RATE_MBIT)
