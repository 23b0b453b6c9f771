"""Writes the text of this example, and trains a tokenizer on it.

The text is the language reference that every Python carries (`pydoc_data.topics`: 79 topics, 466 kB in Python 3.11), a file per topic in
`text/`. Every tenth topic goes to `held-out.txt` instead, without the paragraphs that the others have, too. The tokenizer is a
byte-level BPE of 4,096 tokens, trained on `text/` alone.

The same Python writes the same bytes. Another version of Python carries other text, so that its trainers are refused by a run that was
begun with ours: copy the files instead.

Run: .venv/bin/python examples/prose/prepare.py [DIRECTORY]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
from node.training.spec.tokenizer_training import train_tokenizer  # noqa: E402

VOCABULARY = 4_096
HELD_OUT = 10
"""One topic of so many is not trained on."""


def split() -> tuple[dict[str, str], str]:
    """(training text by topic, held-out text)."""
    names = sorted(topics)
    train = {name: topics[name] for number, name in enumerate(names) if number % HELD_OUT}
    known = {paragraph for text in train.values() for paragraph in paragraphs(text)}
    held_out = (paragraphs(topics[name]) for number, name in enumerate(names) if number % HELD_OUT == 0)
    return train, "\n\n".join(paragraph for text in held_out for paragraph in text if paragraph not in known)


def paragraphs(text: str) -> list[str]:
    """What stands between empty lines."""
    return [paragraph for paragraph in re.split(r"\n{2,}", text.strip("\n")) if paragraph.strip()]


def prepare(directory: Path) -> tuple[int, int]:
    """Write everything; returns (letters to train on, letters held out)."""
    train, held_out = split()
    (directory / "text").mkdir(parents=True, exist_ok=True)
    for old in (directory / "text").glob("*.txt"):
        old.unlink()
    for name, text in train.items():
        (directory / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
    (directory / "held-out.txt").write_text(held_out, encoding="utf-8")
    train_tokenizer(train.values(), VOCABULARY, directory)
    return sum(map(len, train.values())), len(held_out)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the text and the tokenizer of this example.")
    parser.add_argument("directory", type=Path, nargs="?", default=HERE, help="where to put them (default: beside this file)")
    directory = parser.parse_args().directory
    num_train, num_held_out = prepare(directory)
    print(f"{directory}: {num_train:,} letters in text/, {num_held_out:,} in held-out.txt, a tokenizer of {VOCABULARY:,}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
