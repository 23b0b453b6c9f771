"""Optimizers give the same bits with every instruction set of the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.node.training.processes.print_state import report


def test_a_step_has_the_same_bits_with_every_instruction_set() -> None:
    """torch's own optimizers differ here: a fused multiply-add rounds once where two operations round twice."""
    found = [report_with("default"), report_with("avx2"), report()]
    assert found[0][0] == "DEFAULT" and found[1][0] in ("AVX2", "DEFAULT"), found
    assert found[0][1:] == found[1][1:] == found[2][1:], found


def report_with(capability: str) -> list[str]:
    """The lines of a process whose torch may use this instruction set at most."""
    command = [sys.executable, "-m", "tests.node.training.processes.print_state"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout.split()
