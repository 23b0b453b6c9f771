"""A full client's tokenizer, in a sandbox if it came from peers.

The commands need little of a tokenizer, and run a peer's in the sandbox for good. The Python API hands transformers' object to its
caller, which cannot be at the other end of a pipe: there, and for forms that only transformers reads, it is loaded and used in a sandbox
first. A checkpoint of our own is read by transformers here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.checkpoints import chat_template
from swarm.checkpoints.layout import MANIFEST
from swarm.thin.tokenizing.sandbox import Sandbox, SandboxEndedError
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer, open_cpu_s
from swarm.thin.tokenizing.templates import Tokenizer

TRY_CPU_S = 30.0
"""Processor time for using a tokenizer once, beside that for reading it; the import of transformers takes 3 s."""


def is_from_peers(folder: Path) -> bool:
    """Was this checkpoint fetched from peers? A folder of the cache holds the manifest."""
    return (folder / MANIFEST).is_file()


def of_model(model: Any) -> Tokenizer:
    """The tokenizer of a model, for the commands; the caller closes its sandbox."""
    folder, sandbox = Path(model.remote.path), Sandbox(model.remote.backend.model.name)
    try:
        if is_from_peers(folder):
            try:
                return SandboxedTokenizer(sandbox, folder)
            except SandboxEndedError:
                raise
            except ModelNotSupportedError:  # a form that only transformers reads
                pass
        return OwnTokenizer(sandbox, model.tokenizer)
    except BaseException:
        sandbox.close()
        raise


def try_out(folder: Path, name: str) -> None:
    """Load and use the tokenizer of a folder by transformers in a sandbox, as will be done here; SandboxEndedError if it is dangerous.

    What is only wrong in it, the reader will say.
    """
    sandbox = Sandbox(name, with_transformers=True)
    try:
        sandbox.ask({"action": "try", "folder": str(folder.resolve())}, TRY_CPU_S + open_cpu_s(folder))
    except CheckpointError:
        pass
    finally:
        sandbox.close()


class OwnTokenizer:
    """A transformers tokenizer with the face of `SandboxedTokenizer`. Its chat template is run in the sandbox all the same."""

    def __init__(self, sandbox: Sandbox, inner: Any) -> None:
        self.sandbox, self._inner = sandbox, inner

    @property
    def names(self) -> dict[str, Any]:
        """`bos_token`, `eos_token`, …: what they look like in text."""
        found = self._inner.special_tokens_map
        return {name: [*map(str, value)] if isinstance(value, list) else str(value) for name, value in found.items()}

    @property
    def chat_template(self) -> str | None:
        """What a conversation is rendered with; None = plain turns. Raises as `chat_template.default`."""
        found = getattr(self._inner, "chat_template", None)
        return chat_template.default(found) if isinstance(found, dict) else found

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._inner(text, add_special_tokens=add_special_tokens).input_ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._inner.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in runs]
