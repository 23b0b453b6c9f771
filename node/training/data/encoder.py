"""Encodes documents as tokens, in as many sandboxes as there are cores.

The tokenizer and its chat template may come from peers, so both run in `swarm.thin.tokenizing.sandbox`. A sandbox may not start threads:
several of them share the work, each asked by a thread of ours, and results come in the order of the text.

A text document is: what the tokenizer puts before a text (as BOS), the text, what it puts after it, and its end-of-text token if it has
one. A conversation is what the chat template makes of it, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Self

import numpy as np
from numpy.typing import NDArray

from node.training.data import chat
from node.training.data.chat import DAY, marked, targets_of
from node.training.data.documents import Conversation, Item, Message, Part
from node.training.data.faults import bad
from protocols.errors import ConfigError
from swarm.thin.tokenizing import templates
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from swarm.thin.tokenizing.vocabulary import Vocabulary

BATCH_LETTERS = 1 << 20
"""Letters that a sandbox is given at once, give or take a document."""

MAX_PROCESSES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedItems:
    """Some documents, one after the other; the first may go on from the items before, the last may go on in the next."""

    tokens: NDArray[np.uint32]
    ends: NDArray[np.int64]
    """Where documents end, in tokens of this object; rising, from 1."""

    targets: NDArray[np.uint8] | None
    """1 for each token that is a target; None if all are."""

    done_bytes: int
    """Of the last item."""


class Encoder:
    """One tokenizer, several processes. A context manager: its end ends them, also in the middle of a text."""

    def __init__(self, folder: Path, vocab_size: int, num_processes: int | None = None) -> None:
        """folder: with `tokenizer.json`. vocab_size: ids of the model. num_processes: None = as many as cores.

        Starts one process. Raises CheckpointError and ModelNotSupportedError as `tokenizer.open_tokenizer`.
        """
        self._folder, self._vocab_size = folder, vocab_size
        self._num = num_processes or min(os.cpu_count() or 1, MAX_PROCESSES)
        self._idle: SimpleQueue[SandboxedTokenizer] = SimpleQueue()
        self._sandboxes: list[Sandbox] = []
        self._pool = ThreadPoolExecutor(self._num, thread_name_prefix="encoder")
        try:
            first = self._open()
            self.vocabulary: Vocabulary = first.vocabulary()
            self._names, self._template = first.names, first.chat_template
            self._before, self._after = _around(first)
        except BaseException:
            self.close()
            raise
        self._idle.put(first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for sandbox in list(self._sandboxes):
            sandbox.stop()  # what a thread waits for fails now
        self._pool.shutdown(cancel_futures=True)
        for sandbox in self._sandboxes:
            sandbox.close()

    @property
    def pad_id(self) -> int:
        """The padding token's id, else the end token's, else 0."""
        with self._borrowed() as tokenizer:
            for name in ("pad_token", "eos_token"):
                if ids := _id_of(tokenizer, name):
                    return ids[0]
        return 0

    def encode(self, items: Iterable[Item]) -> Iterator[EncodedItems]:
        """All items in order, about BATCH_LETTERS at once.

        ConfigError if an id is beyond the model's vocabulary, or conversations come without a chat template; DataError as of `chat.marked`.
        """
        pending: deque[Future[EncodedItems]] = deque()
        try:
            for batch in _batches(items):
                pending.append(self._pool.submit(self._encode, batch))
                if len(pending) > 2 * self._num:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for one in pending:
                one.cancel()

    def _encode(self, batch: Sequence[Item]) -> EncodedItems:
        with self._borrowed() as tokenizer:
            found = self._conversations(tokenizer, batch) if isinstance(batch[0], Conversation) else self._texts(tokenizer, batch)
        highest = int(found.tokens.max(initial=0))
        if highest >= self._vocab_size:
            raise ConfigError(
                f"the tokenizer in {self._folder} makes the id {highest}, but the model's vocabulary ends at {self._vocab_size - 1}: "
                "take the model's own tokenizer, or raise vocab_size of its config"
            )
        return found

    def _texts(self, tokenizer: SandboxedTokenizer, batch: Sequence[Item]) -> EncodedItems:
        parts = [item for item in batch if isinstance(item, Part)]
        pieces, ends, size = [], [], 0
        for part, encoded in zip(parts, tokenizer.encode_all([part.text for part in parts]), strict=True):
            around = (self._before if part.is_first else [], encoded.ids, self._after if part.is_last else [])
            piece = np.concatenate([np.array(ids, np.uint32) for ids in around])
            size += len(piece)
            pieces.append(piece)
            if part.is_last:
                ends.append(size)
        return EncodedItems(
            tokens=np.concatenate(pieces), ends=np.array(ends, np.int64), targets=None, done_bytes=batch[-1].done_bytes
        )

    def _conversations(self, tokenizer: SandboxedTokenizer, batch: Sequence[Item]) -> EncodedItems:
        template = self._template
        if template is None:
            raise ConfigError(
                f"the tokenizer in {self._folder} has no chat template, which conversations need: put a chat_template.jinja beside it, "
                "or give the source as text (`field`)"
            )

        def render(messages: Sequence[Message], is_prompt: bool) -> str:
            return templates.rendered(tokenizer.sandbox, template, messages, self._names, is_prompt, DAY)

        documents = [(item, one) for item in batch if isinstance(item, Conversation) for one in marked(item, render)]
        encoded = chat.encode([one for _, one in documents], tokenizer.encode_all)
        targets = []
        for (item, document), found in zip(documents, encoded, strict=True):
            targets.append(np.array(targets_of(document, found, self.vocabulary.special), np.uint8))
            if not targets[-1].any():
                raise bad(
                    item.where, "has no token of an answer", "at least one", "leave the record out, or change the chat template"
                )
        return EncodedItems(
            tokens=np.concatenate([np.array(one.ids, np.uint32) for one in encoded]),
            ends=np.cumsum([len(one.ids) for one in encoded], dtype=np.int64),
            targets=np.concatenate(targets),
            done_bytes=batch[-1].done_bytes,
        )

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[SandboxedTokenizer]:
        """A tokenizer that no other thread uses meanwhile; there are at most as many as threads."""
        try:
            tokenizer = self._idle.get_nowait()
        except Empty:
            tokenizer = self._open()
        try:
            yield tokenizer
        finally:
            self._idle.put(tokenizer)

    def _open(self) -> SandboxedTokenizer:
        if not (self._folder / "tokenizer.json").exists():
            raise ConfigError(
                f"{self._folder} has no tokenizer.json: name the folder of a tokenizer in this form (save_pretrained of a fast "
                "tokenizer of transformers writes one)"
            )
        sandbox = Sandbox(self._folder.name)
        self._sandboxes.append(sandbox)
        return SandboxedTokenizer(sandbox, self._folder)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.text) if isinstance(item, Part) else sum(len(message["content"]) for message in item.messages)
        if size >= BATCH_LETTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _around(tokenizer: SandboxedTokenizer) -> tuple[list[int], list[int]]:
    """Ids before and after a text: the tokenizer's own, and its end-of-text token."""
    plain, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    at = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
    before, after, end = full[:at], full[at + len(plain) :], _id_of(tokenizer, "eos_token")
    return before, after if after[-1:] == end else [*after, *end]


def _id_of(tokenizer: SandboxedTokenizer, name: str) -> list[int]:
    """The id of a special token by its name; [] if the tokenizer has none, or no single id for it."""
    text = tokenizer.names.get(name)
    ids = tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) and text else []
    return ids if len(ids) == 1 else []
