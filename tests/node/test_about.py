"""A peer says what it is and what it has done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node import about
from node.about import MADE_S, AboutHere
from node.hardware import total_memory_bytes
from node.machine import machine_here
from node.training.contribution import Contribution
from node.watching import abouts
from protocols.about import About, AboutRequest, Machine
from protocols.errors import FrameError
from protocols.ids import ModelId
from swarm.clock import Clock
from tests.node.test_hardware import GB, machine
from tests.swarm.inference.toy import ToySwarm, ask, fresh_seed, random_tokens

RUN = ModelId("prose", "ab" * 32)
CALL: Any = None


class Hands:
    """Of a clock that stands still."""

    s = 0.0


async def asked(here: AboutHere) -> About:
    (handler,) = here.handlers().values()
    answer: Any = await handler(AboutRequest().encode(), CALL)  # type: ignore[arg-type]
    return About.parse(answer)


async def test_what_sessions_and_runs_had_computed_is_told_with_the_machine() -> None:
    """Sessions are counted once, however many steps they have; a step is counted whatever prefill chunks it is cut into."""
    fresh_seed()
    toys, hands = ToySwarm(), Hands()
    node = await toys.serve(0, 4)
    given = Contribution(Clock(now_s=lambda: hands.s))
    given.add(1_024)
    here = AboutHere("cpu", node.host.runner.device.tally, lambda: [given.as_trained(RUN, "stage")], Clock(now_s=lambda: hands.s))
    try:
        first, second = toys.session(), toys.session()
        await ask(first, (), [20], random_tokens(20))
        await ask(first, (), [1], random_tokens(1))
        await ask(second, (), [9], random_tokens(9))
        hands.s = 90.0
        found = await asked(here)
        assert (found.num_sessions, found.num_steps, found.num_tokens) == (2, 3, 30)
        assert found.uptime_s == 90.0 and found.trained == (given.as_trained(RUN, "stage"),)
        assert (
            found.machine == machine_here("cpu")
            and found.machine.cores > 0
            and 0 < found.free_bytes <= found.machine.memory_bytes
        )
        assert dict(abouts.work(found)) == {
            "runs for": "1 min 30 s", "served": "2 sessions, 3 steps, 30 tokens",
            "trained prose": "1 micro-batch, 1,024 tokens, 0 versions in 1 min 30 s, as stage",
        }  # fmt: skip
        await ask(second, (), [1], random_tokens(1))
        assert (await asked(here)).num_steps == 3, "made once in MADE_S"
        hands.s += MADE_S
        assert (await asked(here)).num_steps == 4
        await first.close()
        await second.close()
    finally:
        await toys.stop()


async def test_a_machine_is_read_once_and_garbage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hands, reads = Hands(), list[str]()

    def read(device: str) -> Machine:
        reads.append(device)
        return Machine(device=device)

    monkeypatch.setattr(about, "machine_here", read)
    here = AboutHere("cpu", clock=Clock(now_s=lambda: hands.s))
    for _ in range(3):
        assert (await asked(here)).machine == Machine(device="cpu")
        hands.s += MADE_S
    assert reads == ["cpu"]
    with pytest.raises(FrameError):
        await next(iter(here.handlers().values()))(b"hello", CALL)  # type: ignore[arg-type]


def test_the_machine_of_a_container_has_the_containers_memory_and_the_processors_name(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/user/memory.max": f"{4 * GB}\n", "sys/fs/cgroup/memory.max": "max\n",
        "proc/cpuinfo": "processor : 0\nmodel name\t: Some  CPU\x1b[31m @ 3 GHz\nmodel name\t: Some CPU\n",
    }  # fmt: skip
    root = machine(tmp_path, 8 * GB, "0::/user\n", files)
    (root / "proc/meminfo").write_text(f"MemTotal: {16 * GB // 1024} kB\n")
    assert total_memory_bytes(root) == 4 * GB
    found = machine_here("cpu", root)
    assert found.memory_bytes == 4 * GB and found.name == "Some  CPU\\x1b[31m @ 3 GHz"
    assert dict(abouts.machine(About(machine=found, uptime_s=1.0)))["memory"] == "4.3 GB"
