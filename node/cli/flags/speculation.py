"""`--speculate` and `--draft`: several tokens per trip through the route.

They are guessed here and checked there. The text stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node.cli.terminal.waiting import shown
from protocols.errors import ConfigError
from swarm.waiting import Waits, loading

if TYPE_CHECKING:
    from swarm.thin.generation import Proposer

MOST_TOKENS = 64
"""Longest run that can be asked for: beyond it, what was wrong costs more than what was right saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Who guesses, and how much."""

    tokens: int | None = None
    """Tokens of a run, at most; None = no prompt lookup, and as many as transformers says for a draft."""
    draft: str | None = None
    """A small model with the same tokens, in a directory here or of the Hub; None = guesses come from the text itself."""

    def __post_init__(self) -> None:
        if self.tokens is not None and not 1 <= self.tokens <= MOST_TOKENS:
            raise ConfigError(f"--speculate is 1 to {MOST_TOKENS} tokens, got {self.tokens}")

    @property
    def is_on(self) -> bool:
        return self.tokens is not None or self.draft is not None

    def arguments(self, model: Any) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate` for `model`. A draft is loaded here, so ask once."""
        if self.draft is not None:
            from swarm.client.guessing import load_draft

            with shown() as on_wait, (waits := Waits(on_wait)).on(loading(f"the draft model {self.draft}")):
                return {"assistant_model": load_draft(self.draft, model, self.tokens, waits)}
        return {} if self.tokens is None else {"prompt_lookup_num_tokens": self.tokens}

    def proposer(self) -> Proposer | None:
        """For a text of a thin client; it has a memory, so each text needs its own. ConfigError if a draft is asked for."""
        if self.draft is not None:
            raise ConfigError(
                "--draft needs torch and a model here, which --thin is without; use --speculate alone, or leave out --thin"
            )
        if self.tokens is None:
            return None
        from swarm.thin.lookup import Lookup

        return Lookup(self.tokens)
