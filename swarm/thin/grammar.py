"""Which tokens keep an answer to a JSON schema.

llguidance (https://github.com/guidance-ai/llguidance) compiles the schema, and follows the answer token by token. Schema and tokenizer
come from others, so this runs in a sandbox (`sandbox_main.py`); `constraining.py` asks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import llguidance

from protocols.errors import ModelNotSupportedError
from protocols.words import described, one_line

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

FORM: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write each value: else a model may go on with blanks for ever."""


class Grammar:
    """One answer at a time, of one tokenizer."""

    def __init__(self, folder: Path, vocab_size: int, ends: list[int]) -> None:
        """vocab_size: logits of a token. ends: tokens that may come where the answer is complete. ModelNotSupportedError if the tokenizer
        cannot be read."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelNotSupportedError(f"{folder.name} has no tokenizer.json, which a JSON answer needs")
        if not ends:
            raise ModelNotSupportedError(f"{folder.name} has no end token, which a JSON answer needs")
        self._size = vocab_size
        try:
            self._tokenizer = llguidance.LLTokenizer(str(file.resolve()), n_vocab=vocab_size, eos_token=ends)
        except ValueError as error:
            raise ModelNotSupportedError(f"the tokenizer of {folder.name} gives no JSON answers: {error}") from None
        self._matcher: llguidance.LLMatcher | None = None

    def begin(self, schema: str) -> None:
        """A new answer. ModelNotSupportedError if the schema is none, or uses what is not supported."""
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(json.loads(schema)), defaults=FORM)
        except (ValueError, RecursionError) as error:
            raise ModelNotSupportedError(f"the JSON schema is none: {described(error)}") from None
        self._matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        self._check()

    def allowed(self, token: int | None) -> bytes:
        """The tokens that may come next, as `StepSpec.mask`. token: what has come since the last call; None at the beginning."""
        assert self._matcher is not None
        if token is not None:
            self._matcher.consume_token(token)
            self._check()
        mask = bytearray(self._matcher.compute_bitmask()[: (self._size + 7) // 8])
        self._check()
        if self._size % 8:
            mask[-1] &= (1 << self._size % 8) - 1
        return bytes(mask)

    def _check(self) -> None:
        assert self._matcher is not None
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("<state>")[0]  # behind it: the state of the parser
            raise ModelNotSupportedError(f"the JSON schema: {one_line(reason)[:500]}")
