"""Claims of a GGUF file, and messages of a conversion.

No model is converted here.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tqdm.auto

from protocols.errors import CheckpointError, DiskFullError, ModelNotSupportedError, SwarmError
from swarm.models import gguf_main
from tests.gguf_files import make_model, vocabulary, write_gguf


def test_transformers_bars_are_told_as_thirds_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[int, int]]()
    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm.auto.tqdm)  # as it is, at the end
    gguf_main._show_bars(lambda done, total: told.append((done, total)))
    for words in ("Converting and de-quantizing", "Downloading", "Loading weights", "Writing model shards"):
        with tqdm.auto.tqdm(total=4, desc=words, mininterval=0) as bar:
            bar.update(3)
    assert {(3, 12), (7, 12), (11, 12)} <= set(told) and told == sorted(told) and (4, 4) not in told


def claiming(tmp_path: Path, num_blocks: int = 0, width: int = 0) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", make_model(len(vocabulary()[0])), num_blocks=num_blocks, width=width)


@pytest.mark.parametrize(
    ("num_blocks", "width", "why"),
    [
        (10_000, 0, "says 10000 blocks, and holds 30 tensors"),
        (10_001, 0, "num_hidden_layers"),
        (0, 1 << 30, "hidden_size"),
        (0, 1 << 16, r"describes a model of [0-9]{8,} values, and holds [0-9]{6}; it is damaged"),
    ],
)
def test_what_a_file_claims_is_bounded_by_what_it_holds(tmp_path: Path, num_blocks: int, width: int, why: str) -> None:
    file = claiming(tmp_path, num_blocks, width)
    with pytest.raises(CheckpointError, match=why):
        gguf_main.check_model(file, gguf_main.read_contents(file))


def test_a_disk_without_room_for_the_checkpoint_is_said_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = claiming(tmp_path), tmp_path / "target" / "tiny"
    target.mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60 << 20))
    with pytest.raises(
        DiskFullError, match=r"too little disk for tiny.gguf as safetensors at .*: 6[78] MB are needed, 63 MB are free"
    ):
        gguf_main.convert(file, target)
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError, "became full while tiny.gguf was converted"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFullError, "became full"),
        (Exception("No space left on device (os error 28)"), DiskFullError, "became full"),  # as tokenizers says it
        (KeyError("rope"), ModelNotSupportedError, r"does not load .*tiny.gguf, of architecture 'llama' \(KeyError: 'rope'\)"),
    ],
)
def test_a_full_disk_is_not_told_as_a_model_that_transformers_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[SwarmError], why: str
) -> None:
    """Whatever writes may meet it: here the tokenizer, which comes first."""
    file, target = claiming(tmp_path), tmp_path / "target" / "tiny"
    target.mkdir(parents=True)
    monkeypatch.setattr(gguf_main, "save_tokenizer", raising(error))
    with pytest.raises(kind, match=why):
        gguf_main.convert(file, target)


def test_any_other_error_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as an end from outside, which more memory would help."""
    monkeypatch.setattr(gguf_main, "convert", raising(PermissionError(errno.EACCES, "Permission denied")))
    told = gguf_main.outcome(tmp_path / "tiny.gguf", tmp_path)
    assert told["code"] == CheckpointError.code and "tiny.gguf could not be converted (PermissionError: " in str(told["error"])


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail
