"""A model's tokenizer that runs in a sandbox.

Text to token ids and back, and the conversation of its chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from swarm.checkpoints import chat_template
from swarm.thin.tokenizing.encoded import Encoded, unpack, unpack_all
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.vocabulary import Vocabulary

OPEN_CPU_S, OPEN_CPU_S_PER_MB = 10.0, 1.5
"""Processor time for reading a tokenizer: that of 262,144 tokens (19 MB) takes 4 s on a slow core."""

ENCODE_CPU_S, ENCODE_CPU_S_PER_MB = 5.0, 10.0
"""The same for a text, by its letters; 1 to 2 s for a million."""

_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")


class SandboxedTokenizer:
    """The face of `tokenizer.Tokenizer`, which is at the other end of a pipe."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        """Opens the tokenizer of a checkpoint's folder; errors as of `tokenizer.open_tokenizer`, and of `Sandbox.ask`."""
        self.sandbox, self.folder = sandbox, folder
        self._open_cpu_s = open_cpu_s(folder)
        opened = sandbox.open({"action": "open", "folder": str(folder.resolve())}, self._open_cpu_s)
        self._templates: Mapping[str, str] = opened["templates"]
        self._names: dict[str, str] = opened["names"]

    @property
    def names(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, …: what they look like in text."""
        return self._names

    @property
    def chat_template(self) -> str | None:
        """What a conversation is rendered with; None = plain turns. Raises as `chat_template.default`."""
        return chat_template.default(self._templates)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        request = {"action": "encode", "text": text, "special": add_special_tokens}
        ids: list[int] = self.sandbox.ask(request, ENCODE_CPU_S + ENCODE_CPU_S_PER_MB * len(text) / 1e6)["ids"]
        return ids

    def encode_all(self, texts: Sequence[str], with_spans: bool = False) -> list[Encoded]:
        """As `tokenizer.Tokenizer.encode_all`, for one hop over the pipe."""
        request = {"action": "encode_all", "texts": list(texts), "spans": with_spans}
        return unpack_all(self.sandbox.ask(request, ENCODE_CPU_S + ENCODE_CPU_S_PER_MB * sum(map(len, texts)) / 1e6))

    def vocabulary(self) -> Vocabulary:
        """What each token stands for."""
        answer = self.sandbox.ask({"action": "vocabulary"}, self._open_cpu_s)
        return Vocabulary(byte_lengths=unpack(answer["byte_lengths"]).tolist(), special=frozenset(answer["special"]))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.decode_all([ids], skip_special_tokens)[0]

    def twin(self) -> SandboxedTokenizer:
        """The same tokenizer in a process of its own, which its owner closes."""
        sandbox = Sandbox(self.sandbox.model, limits=self.sandbox.limits)
        try:
            return SandboxedTokenizer(sandbox, self.folder)
        except BaseException:
            sandbox.close()
            raise

    async def decode_soon(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """As `decode_all`, without a thread; see `Sandbox.ask_soon`."""
        request = {"action": "decode", "runs": [list(ids) for ids in runs], "skip": skip_special_tokens}
        texts: list[str] = (await self.sandbox.ask_soon(request, self.sandbox.limits.decode_s))["texts"]
        return texts

    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each run of ids, for one hop over the pipe."""
        request = {"action": "decode", "runs": [list(ids) for ids in runs], "skip": skip_special_tokens}
        texts: list[str] = self.sandbox.ask(request, self.sandbox.limits.decode_s)["texts"]
        return texts


def open_cpu_s(folder: Path) -> float:
    """Processor time for reading the tokenizer files of a folder, by their size."""
    size = sum(path.stat().st_size for name in _FILES if (path := folder / name).exists())
    return OPEN_CPU_S + OPEN_CPU_S_PER_MB * size / 1e6
