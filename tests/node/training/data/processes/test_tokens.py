"""Tokens of a data set: encoded once, the same everywhere."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from node.training.data import documents, encoder, store
from node.training.data.batches import Batches
from node.training.data.micro_batch import NO_TARGET
from node.training.data.sources import Source
from node.training.data.token_data import TokenData
from node.training.data.tokens import TokenSettings, open_tokens
from protocols.errors import ConfigError, DataError, DeadlineError, DiskFullError, SwarmError
from swarm.clock import Clock
from tests.node.training.data.test_documents import lines
from tests.node.training.data.tokenizers_made import CHATML, SPECIAL, TEXT, VOCABULARY, make, trained

TEXTS = {"a.txt": TEXT[:30_000] + "世界 🙂", "b.txt": TEXT[30_000:50_000], "c.txt": "short"}
CHATS = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(40)
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with text, conversations and a tokenizer with a chat template."""
    make(tmp_path / "tokenizer", CHATML)
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    lines(tmp_path / "chats.jsonl", *CHATS)
    return tmp_path


def opened(place: Path, *sources: Source, progress: Callable[[int, int], None] | None = None, **changes: Any) -> TokenData:
    given = {"tokenizer": place / "tokenizer", "vocab_size": VOCABULARY, "cache": place / "cache", "num_processes": 1, **changes}
    return open_tokens(sources or (Source(files=("*.txt",)),), place, TokenSettings(**given), progress=progress)


def cached(place: Path) -> Path:
    (found,) = [path for path in (place / "cache").iterdir() if path.is_dir()]
    return found


def test_documents_become_the_tokenizers_ids_between_begin_and_end(place: Path) -> None:
    told: list[tuple[int, int]] = []
    data = opened(place, progress=lambda done, total: told.append((done, total)))
    reference = Tokenizer.from_str(trained())
    expected = [[*reference.encode(text).ids, SPECIAL.index("</s>")] for text in TEXTS.values()]
    (source,) = data.sources
    assert source.tokens.tolist() == [number for ids in expected for number in ids] and source.tokens[0] == SPECIAL.index("<s>")
    assert source.tokens.dtype == np.uint16 and isinstance(source.tokens, np.memmap)
    assert source.ends.tolist() == np.cumsum([len(ids) for ids in expected]).tolist()
    total = sum(len(text.encode()) for text in TEXTS.values())
    assert told[-1] == (total, total) and told == sorted(told) and told.count(told[-1]) == 1


@pytest.mark.parametrize("packing", [True, False])
def test_the_bytes_of_all_targets_are_the_bytes_of_the_text(place: Path, packing: bool) -> None:
    """Begin and end stand for none, and every token but the begin is a target once."""
    data = opened(place)
    run = Batches(
        data, seed=0, sequence_tokens=64, packing=packing, micro_batch_sequences=4, num_micro_batches=1, validation=data
    )
    assert sum(one.num_bytes for one in run.validation()) == sum(len(text.encode()) for text in TEXTS.values())
    assert sum(one.num_targets for one in run.validation()) == data.num_tokens - data.num_documents


def test_text_in_parts_and_by_several_processes_is_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = opened(place).digest
    monkeypatch.setattr(encoder, "BATCH_LETTERS", 9_000)
    assert opened(place, cache=place / "other", num_processes=2).digest == whole
    monkeypatch.setattr(documents, "PART_LETTERS", 5_000)
    data = opened(place)
    assert (
        bytes(Tokenizer.from_str(trained()).decode(data.sources[0].tokens.tolist()), "utf-8") == "".join(TEXTS.values()).encode()
    )
    begins_and_ends = [int(token) for token in data.sources[0].tokens if token < len(SPECIAL)]
    assert data.num_documents == 3 and begins_and_ends == [SPECIAL.index("<s>"), SPECIAL.index("</s>")] * 3


def test_the_digest_is_the_same_wherever_the_files_are_and_another_for_other_text(place: Path) -> None:
    first = opened(place).digest
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    for number, name in enumerate(TEXTS):
        shutil.copy(place / name, elsewhere / f"{number}.md")
    shutil.copytree(place / "tokenizer", elsewhere / "tokenizer")
    assert opened(elsewhere, Source(files=("*.md",))).digest == first
    (elsewhere / "2.md").write_text("shorT")
    assert opened(elsewhere, Source(files=("*.md",))).digest != first


def test_what_is_cached_is_not_encoded_again(place: Path) -> None:
    first, folder = opened(place), cached(place)
    written = (folder / "tokens").stat().st_ino
    told: list[int] = []
    again = opened(place, progress=lambda done, total: told.append(done))
    assert again.digest == first.digest and len(told) == 1
    assert (folder / "tokens").stat().st_ino == written and cached(place) == folder


@pytest.mark.parametrize("file", ["tokens", "ends", "byte_lengths", "meta.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_made_anew(place: Path, file: str, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    first, path = opened(place, Source(files=("c.txt",))).digest, cached(place) / file
    content = path.read_bytes()
    path.unlink()
    if harm != "remove":
        path.write_bytes(content[:-1] if harm == "cut" else bytes([content[0] ^ 1]) + content[1:])
    assert opened(place, Source(files=("c.txt",))).digest == first
    assert path.read_bytes() == content and "are damaged" in caplog.text


def test_two_at_once_encode_once(place: Path) -> None:
    """The second begins while the first holds the lock, and then finds all done."""
    found: dict[str, Any] = {"first": [], "second": []}

    def second() -> None:
        found["digest"] = opened(place, progress=lambda done, total: found["second"].append(done)).digest

    thread = threading.Thread(target=second)

    def progress(done: int, total: int) -> None:
        if not found["first"]:
            thread.start()
        found["first"].append(done)

    first = opened(place, progress=progress)
    thread.join(timeout=60)
    assert found["digest"] == first.digest and len(found["first"]) == 2 and len(found["second"]) == 1


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(place: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tests.node.training.data.processes.test_tokens import opened\n"
        "opened(Path(sys.argv[1]), progress=lambda done, total: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], env={**os.environ}, timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = [path for path in (place / "cache").iterdir() if path.is_dir()]
    assert left.name.endswith(".partial")
    opened(place)
    assert cached(place).name + ".partial" == left.name


def test_an_error_on_the_way_leaves_nothing(place: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(place, progress=progress)
    assert not [path for path in (place / "cache").iterdir() if path.is_dir()]


def test_a_process_that_holds_the_lock_and_does_nothing_is_named(place: Path) -> None:
    opened(place)
    folder = cached(place)
    seconds = iter(range(0, 10**6, 250))
    with folder.with_name(folder.name + ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(DeadlineError, match="has written nothing for 600 s: end it, or wait"),
            store.locked(folder, Clock(now_s=lambda: next(seconds))),
        ):
            pass


def test_answers_of_conversations_are_the_only_targets(place: Path) -> None:
    data = opened(place, Source(files=("chats.jsonl",), messages="messages"))
    reference = Tokenizer.from_str(trained())
    run = Batches(data, seed=0, sequence_tokens=32, packing=True, micro_batch_sequences=1, num_micro_batches=1, validation=data)
    labels = [int(label) for one in run.validation() for label in one.labels.flat if label != NO_TARGET]
    assert reference.decode(labels, skip_special_tokens=False) == "".join(f"It is {n}.<|im_end|>" for n in range(40))
    assert data.num_documents == 40 and run.num_sequences == -(-data.num_tokens // 32)


NO_TEMPLATE = "has no chat template, which conversations need: put a chat_template.jinja beside it"
ANSWERS = Source(files=("chats.jsonl",), messages="messages")


@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        (None, ConfigError, NO_TEMPLATE),
        ("{{ raise_exception('too short') }}", DataError, r"line 1 of .*chats.jsonl cannot be rendered \(too short\), expected"),
        ("{{ undefined.attribute }}", DataError, r"cannot be rendered \(UndefinedError: 'undefined' is undefined\)"),
        ("{{ messages[0].content }}", DataError, "line 1 of .*chats.jsonl has no token of an answer, expected at least one"),
    ],
)
def test_conversations_that_cannot_be_rendered_are_refused(
    place: Path, template: str | None, error: type[SwarmError], words: str
) -> None:
    make(place / "tokenizer", template)
    with pytest.raises(error, match=words):
        opened(place, ANSWERS)


def test_ids_beyond_the_models_vocabulary_are_refused_when_made_and_when_cached(place: Path) -> None:
    for words in ("makes the id 4[0-9]{2}, but", r"data.train\[0\] has the token id 4[0-9]{2}, but"):
        with pytest.raises(ConfigError, match=words + " the model's vocabulary ends at 399: take the model's own tokenizer"):
            opened(place, vocab_size=400)
        opened(place)


def test_bad_input_is_refused_with_one_line(place: Path) -> None:
    lines(place / "empty.jsonl", {"text": ""}, {"text": None})
    with pytest.raises(DataError, match=r"data.train\[0\] has only empty documents \(1 files\), expected text: check `field`"):
        opened(place, Source(files=("empty.jsonl",)))
    with pytest.raises(ConfigError, match=r"no file matches 'gone/\*'"):
        opened(place, Source(files=("gone/*",)))
    with pytest.raises(ConfigError, match=r"gone has no tokenizer.json: name the folder of a tokenizer in this form"):
        opened(place, tokenizer=place / "gone")
    with pytest.raises(ConfigError, match=r"data.train is empty"):
        open_tokens([], place, TokenSettings(tokenizer=place / "tokenizer", vocab_size=VOCABULARY, cache=place / "cache"))


def test_a_file_that_grows_while_it_is_read_is_refused(place: Path) -> None:
    def progress(done: int, total: int) -> None:
        with (place / "a.txt").open("a") as grown:
            grown.write("more")

    with pytest.raises(DataError, match=r"a.txt was changed while it was read, expected a file at rest: start again"):
        opened(place, progress=progress)


def test_a_full_disk_is_said_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written second goes to /dev/full, a disk without space."""
    monkeypatch.setattr(encoder, "BATCH_LETTERS", 9_000)

    def progress(done: int, total: int) -> None:
        (written,) = (place / "cache").glob("*.partial/tokens")
        written.unlink()
        written.symlink_to("/dev/full")

    with pytest.raises(DiskFullError, match="is full, tokens take about half the bytes of their text: free some space"):
        opened(place, progress=progress)
    assert not [path for path in (place / "cache").iterdir() if path.is_dir()]


def test_the_key_changes_with_the_tokenizer_and_the_field(place: Path) -> None:
    lines(place / "two.jsonl", {"text": "one", "body": "two"})
    for source in (Source(files=("two.jsonl",)), Source(files=("two.jsonl",), field="body")):
        opened(place, source)
    path = place / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<s>"}))
    assert opened(place, Source(files=("two.jsonl",))).pad_id == SPECIAL.index("<s>")
    assert len([path for path in (place / "cache").iterdir() if path.is_dir()]) == 3
