"""Small files: replaced as a whole, or not at all."""

from __future__ import annotations

import errno
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


def test_what_a_file_holds_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may leave the name with an empty file: a node's identity would be lost."""
    done, replace, path = list[object](), os.replace, tmp_path / "file.txt"
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replaced") or replace(*paths))
    files.replace(path, "four")
    assert done == [4, "replaced"] and path.read_text() == "four"


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True),  # safetensors, tokenizers
        (OSError(errno.EACCES, "Permission denied"), False),
        (Exception("Permission denied (os error 13)"), False),
        (ValueError("28"), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_by_rusts_words(error: Exception, is_full: bool) -> None:
    assert files.is_full(error) is is_full
