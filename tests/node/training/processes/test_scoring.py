"""`swarm eval` of a directory gives Hugging Face's loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from node.cli.app import main
from tests.end_to_end.local_swarm import make_llama
from tests.families import add_byte_tokenizer

TEXTS = ("The quick brown fox jumps over the lazy dog, é.", "A list is " * 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint, and two texts."""
    folder = tmp_path_factory.mktemp("run")
    add_byte_tokenizer(make_llama(folder / "checkpoint-20"))
    (folder / "checkpoint-3").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return folder


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, float]:
    texts = [word for number in range(len(TEXTS)) for word in ("--data", str(folder / f"{number}.txt"))]
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(folder), *texts, "--json", "--data-dir", str(folder / "data"), *more])
    assert ended.value.code == 0, capsys.readouterr().err
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


def test_loss_perplexity_and_bits_per_byte_are_those_of_hugging_face(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "checkpoint-20", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "checkpoint-20")
    loss_sum, num_targets = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            loss_sum += float(model(ids, labels=ids).loss) * (ids.numel() - 1)
        num_targets += ids.numel() - 1
    found = evaluated(folder, capsys)
    loss = loss_sum / num_targets
    assert found["tokens"] == num_targets == sum(len(text.encode()) - 1 for text in TEXTS)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-5), "a token is a byte"
    assert found["model"] == str(folder / "checkpoint-20"), "the newest checkpoint of the run"


def test_a_run_without_a_checkpoint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "held-out.txt").write_text(TEXTS[0])
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path), "--data", str(tmp_path / "held-out.txt")])
    assert ended.value.code == 2 and "has no checkpoint: expected checkpoint-N" in capsys.readouterr().err


def test_no_text_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(folder)])
    assert ended.value.code and "no text to evaluate on: give --data FILE" in capsys.readouterr().err
