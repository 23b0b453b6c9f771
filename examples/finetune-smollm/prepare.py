"""Writes the questions and answers of this example, and links the model.

They are made from the language reference that every Python carries (`pydoc_data.topics`): a paragraph that begins with "A list display is
…" answers "In Python, what is a list display?". Every tenth goes to `held-out.jsonl` instead of `train.jsonl`. One line is one
conversation.

Run: .venv/bin/python examples/finetune-smollm/prepare.py CHECKPOINT [DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

HERE = Path(__file__).resolve().parent

HELD_OUT = 10
"""One pair of so many is not trained on."""

LENGTHS = range(60, 900)
"""Letters of an answer."""

VERBS = "is|are|has|have|can|may|must|do|does|will|should|returns|raises|allows|defines"

DEFINES = re.compile(rf'((?:An?|The)? ?["\w][\w"().*-]*(?: [\w"().*-]+){{0,6}}?) ({VERBS}) ')
"""How a paragraph begins that says what something is."""

NO_SUBJECTS = frozenset(
    ("it", "this", "that", "these", "those", "there", "if", "they", "both", "note", "all", "see", "which", "what")
)


def pairs() -> Iterator[tuple[str, str]]:
    """(question, answer), each once, in the order of topics."""
    seen = set[str]()
    for name in sorted(topics):
        for block in re.split(r"\n{2,}", topics[name]):
            answer = " ".join(block.split())
            found = DEFINES.match(answer)
            if block.startswith(" ") or found is None or len(answer) not in LENGTHS:
                continue
            subject = found[1].strip()
            question = (
                f"In Python, what about {_small(subject)}?"
                if found[2] not in ("is", "are")
                else (f"In Python, what {found[2]} {_small(subject)}?")
            )
            if subject.split()[0].lower() not in NO_SUBJECTS and question not in seen:
                seen.add(question)
                yield question, answer


def _small(subject: str) -> str:
    first, blank, rest = subject.partition(" ")
    return f"{first.lower()}{blank}{rest}" if first.istitle() and first != "Python" else subject


def conversation(question: str, answer: str) -> str:
    """One line of a JSONL file."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def prepare(checkpoint: Path, directory: Path) -> tuple[int, int]:
    """Write everything; returns (pairs to train on, pairs held out)."""
    lines = [conversation(*pair) for pair in pairs()]
    files = {
        "train.jsonl": [line for number, line in enumerate(lines) if number % HELD_OUT],
        "held-out.jsonl": lines[::HELD_OUT],
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, own in files.items():
        (directory / name).write_text("".join(f"{line}\n" for line in own), encoding="utf-8")
    link = directory / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.resolve(), target_is_directory=True)
    return len(files["train.jsonl"]), len(files["held-out.jsonl"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the questions and answers of this example.")
    parser.add_argument("checkpoint", type=Path, help="directory of SmolLM2-135M-Instruct, as scripts/real_model prints it")
    parser.add_argument("directory", type=Path, nargs="?", default=HERE, help="where to put them (default: beside this file)")
    given = parser.parse_args()
    if not (given.checkpoint / "config.json").is_file():
        parser.error(f"{given.checkpoint} has no config.json: give the directory that scripts/real_model prints")
    num_train, num_held_out = prepare(given.checkpoint, given.directory)
    print(f"{given.directory}: {num_train} pairs in train.jsonl, {num_held_out} in held-out.jsonl")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
