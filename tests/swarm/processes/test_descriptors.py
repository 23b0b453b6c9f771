"""Descriptors: a node takes as many as it is allowed."""

from __future__ import annotations

import subprocess
import sys

import pytest

_CODE = """
import resource, sys
from swarm import descriptors
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(descriptors.raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 1_024, 1_024), (512, 512, 512), (1_024, 4_096, 4_096)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int, expected: int) -> None:
    out = subprocess.run([sys.executable, "-c", _CODE, str(soft), str(hard)], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(expected)] * 2
