"""Run files of tests, beside the files that they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

PROSE = Path(__file__).resolve().parents[4] / "examples" / "prose"


def write_run(folder: Path, text: str | None = None) -> Path:
    """`run.toml` (the example's, unless another text is given), `config.json`, and a tokenizer of four tokens."""
    for name in ("run.toml", "config.json"):
        shutil.copy(PROSE / name, folder / name)
    if text is not None:
        (folder / "run.toml").write_text(text, encoding="utf-8")
    write_tokenizer(folder / "tokenizer.json", 4)
    return folder / "run.toml"


def write_tokenizer(file: Path, num_ids: int) -> None:
    vocabulary = {f"t{number}": number for number in range(num_ids - 1)}
    added = [{"id": num_ids - 1, "content": "<end>", "special": True}]
    file.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added}), encoding="utf-8")
    file.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}), encoding="utf-8")
