"""Small files: replaced as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarm import files


def test_a_file_is_replaced_as_a_whole_and_only_its_user_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / f"{files.stem_of('any / name')}.txt"
    files.replace(path, "old")
    files.replace(path, "new ☃")
    assert path.read_text(encoding="utf-8") == "new ☃" and path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    files.replace(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
