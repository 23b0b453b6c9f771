"""Which tokens keep an answer to its form.

llguidance (https://github.com/guidance-ai/llguidance) compiles what is asked for, and follows the answer token by token. Schemas and
tokenizer come from others, so this runs in a sandbox (`tokenizing/sandbox_main.py`); `swarm/thin/constraining.py` asks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import llguidance

from protocols.errors import ModelNotSupportedError
from protocols.words import described, one_line
from swarm.thin.grammar.answer_form import AnswerForm
from swarm.thin.grammar.call_grammar import lark
from swarm.thin.grammar.marks import JSON_FORM

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions


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
        self._size, self._ends = vocab_size, ends
        try:
            self._tokenizer = llguidance.LLTokenizer(str(file.resolve()), n_vocab=vocab_size, eos_token=ends)
        except ValueError as error:
            raise ModelNotSupportedError(f"the tokenizer of {folder.name} gives no JSON answers: {error}") from None
        self._matcher: llguidance.LLMatcher | None = None
        added = [token for token in json.loads(file.read_bytes()).get("added_tokens", ()) if token["id"] < vocab_size]
        self._added = {str(token["content"]): int(token["id"]) for token in added}
        self._special = frozenset(int(token["id"]) for token in added if token["special"])

    def begin(self, form: AnswerForm) -> None:
        """A new answer. ModelNotSupportedError if a schema is none, or uses what is not supported."""
        try:
            is_plain = form.calls is None and not form.lead and form.thought is None
            grammar = self._of_schema(form.schema) if is_plain else lark(form, self._added, self._special, self._ends)
        except (ValueError, RecursionError) as error:
            raise ModelNotSupportedError(f"the JSON schema is none: {described(error)}") from None
        self._matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        self._check()

    def _of_schema(self, schema: str | None) -> str:
        assert schema is not None
        return llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(json.loads(schema)), defaults=cast("JsonCompileOptions", JSON_FORM)
        )

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
            reason, _, _ = self._matcher.get_error().partition("<state>")  # behind it: the state of the parser
            reason, _, _ = reason.partition(" 1 | %llguidance")  # and our own grammar
            raise ModelNotSupportedError(f"the JSON schema: {one_line(reason)[:500]}")
