"""The machine: memory under cgroups, devices, choice of a number format."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.hardware import (
    IMPORTS_BYTES,
    devices,
    free_memory_bytes,
    matmul_s,
    pick_device,
    pick_dtype,
    resident_bytes,
    room_bytes,
)
from protocols.errors import ConfigError

GB = 1 << 30


def machine(root: Path, available: int, cgroup: str, files: dict[str, str]) -> Path:
    """A file tree as the kernel shows it."""
    texts = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {available // 1024} kB\n", "proc/self/cgroup": cgroup, **files}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_cgroup_the_machine_decides(tmp_path: Path) -> None:
    assert free_memory_bytes(machine(tmp_path, 8 * GB, "0::/\n", {})) == 8 * GB


def test_a_v2_limit_above_us_counts_and_droppable_cache_is_free(tmp_path: Path) -> None:
    outer = "sys/fs/cgroup/user"
    files = {
        f"{outer}/memory.max": f"{4 * GB}\n",
        f"{outer}/memory.current": f"{3 * GB}\n",
        f"{outer}/memory.stat": f"anon 5\ninactive_file {GB}\n",
        f"{outer}/inner/memory.max": "max\n",
        f"{outer}/inner/memory.current": "1\n",
    }
    assert free_memory_bytes(machine(tmp_path, 8 * GB, "0::/user/inner\n", files)) == 2 * GB


def test_a_v1_limit_counts_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory"
    files = {f"{mount}/memory.limit_in_bytes": f"{2 * GB}\n", f"{mount}/memory.usage_in_bytes": f"{GB // 2}\n"}
    cgroup = "9:cpu:/\n4:memory:/docker/abc\n0::/\n"
    assert free_memory_bytes(machine(tmp_path, 8 * GB, cgroup, files)) == 3 * GB // 2


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    mount = "sys/fs/cgroup/memory"
    files = {f"{mount}/memory.limit_in_bytes": "9223372036854771712\n", f"{mount}/memory.usage_in_bytes": "1\n"}
    assert free_memory_bytes(machine(tmp_path, 8 * GB, "4:memory:/\n", files)) == 8 * GB


def test_the_imports_are_kept_back_once(tmp_path: Path) -> None:
    """The same machine has the same capacity before and after the imports."""
    before = machine(tmp_path / "before", 2 * GB, "", {"proc/self/statm": "0 0 0\n"})
    assert room_bytes("cpu", before) == 2 * GB - IMPORTS_BYTES
    pages = IMPORTS_BYTES // 4096
    after = machine(tmp_path / "after", 2 * GB - IMPORTS_BYTES, "", {"proc/self/statm": f"0 {pages} 0\n"})
    assert abs(room_bytes("cpu", after) - room_bytes("cpu", before)) < 8192


def test_this_machine_has_some_memory() -> None:
    assert 0 < resident_bytes() < free_memory_bytes() + resident_bytes()


def test_what_torch_keeps_of_a_card_without_using_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that gave up its span loads the next one into this memory; the driver calls it taken."""
    import torch

    answers = {"mem_get_info": (10 * GB, 80 * GB), "memory_reserved": 30 * GB, "memory_allocated": 5 * GB}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert room_bytes("cuda:0") == int(35 * GB * 0.9)


def test_a_device_is_found_or_refused_with_what_there_is() -> None:
    assert "cpu" in devices()
    assert pick_device("auto") == devices()[0]
    with pytest.raises(ConfigError, match=r"no device .tpu. here; there are: .*cpu"):
        pick_device("tpu")


@pytest.mark.parametrize(("ratio", "chosen"), [(5.0, "float32"), (0.5, "bfloat16")])
def test_a_slow_format_is_measured_and_avoided(ratio: float, chosen: str) -> None:
    choice = pick_dtype("auto", "bfloat16", "cpu", measure=lambda dtype, _device: ratio if dtype == "bfloat16" else 1.0)
    assert choice.name == chosen
    assert f"{ratio:.2f} times" in choice.reason


def test_the_swarms_format_counts_for_more_than_speed_and_the_persons_for_more_than_both() -> None:
    def never(dtype: str, device: str) -> float:
        raise AssertionError("nothing to measure")

    assert pick_dtype("auto", "bfloat16", "cpu", served="float32", measure=never).name == "float32"
    assert pick_dtype("bfloat16", "float32", "cpu", served="float32", measure=never).name == "bfloat16"
    assert pick_dtype("auto", "float32", "cpu", measure=never).name == "float32"


def test_a_matmul_can_be_timed_here() -> None:
    assert all(0 < matmul_s(dtype, "cpu", size=32, rounds=1) < 60 for dtype in ("float32", "bfloat16"))
