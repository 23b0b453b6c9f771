"""What a checkpoint says about generating, key by key.

And what the commands make of each of its keys.

transformers takes whatever `generation_config.json` says into account. The commands promise one answer, streamed, whose K/V stay at the
nodes, likeliest token first unless sampling is wanted. Hence four kinds of keys, the same with and without `--thin`:

- `STATED`: the commands set these themselves, whatever the checkpoint says (cache, returned form, number of answers, beams, speed).
- `REFUSED`: they would change text in a way that no command can follow; exit code 4 with the reason.
- sampling (`SAMPLING`): used if sampling is wanted.
- `stop_strings`: where an answer ends (`stops.py`).

Everything else is transformers' own business: the full client leaves it to `generate`, a thin one knows some of it (`defaults.py`) and
refuses the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError, shown

ONE_SEQUENCE: dict[str, Any] = {
    **{"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False, "use_cache": True},
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), False),
}
"""What `generate` has to be told so that it makes one sequence and returns its ids, whatever a checkpoint says."""

STATED: dict[str, Any] = {
    **ONE_SEQUENCE,
    # K/V are at the nodes
    **dict.fromkeys(("cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"), None),
    # one token after the other, or the runs that --speculate and --draft ask for
    **{"num_beam_groups": 1, "diversity_penalty": 0.0, "length_penalty": 1.0, "early_stopping": False},
    **dict.fromkeys(("penalty_alpha", "dola_layers", "prompt_lookup_num_tokens", "assistant_early_exit"), None),
    **dict.fromkeys(("assistant_ensemble_weight", "max_matching_ngram_size"), None),
    **{"use_mtp": False, "is_assistant": False},
    # where an answer ends: --max-new-tokens, the model's end tokens, and `stops.py`
    **dict.fromkeys(("max_length", "max_time", "stop_strings"), None),
}
"""Keyword arguments of `generate` that the commands state, whatever the checkpoint says."""

_OTHER_TEXT = ("num_beams", "penalty_alpha", "dola_layers", "assistant_ensemble_weight", "max_time")
"""Of the stated keys, those with which transformers would say something else than a command does: that is worth a remark."""

REFUSED = ("token_healing", "constraints", "force_words_ids")
"""Settings that change text and that no command can follow."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p")
"""Settings that matter if tokens are drawn; the order is that of the remark."""

DEFAULT_TOP_K = 50
"""What transformers 5 takes if the checkpoint samples and says nothing."""

TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")
MAX_STOPS, MAX_STOP = 64, 200
"""Most stop strings of a checkpoint, and most letters of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a person wants tokens to be picked."""

    asked: Mapping[str, float] = field(default_factory=dict)
    """What was given of temperature, top_p and top_k."""

    is_greedy: bool = False
    """The likeliest token, whatever else is said."""

    as_model_says: bool = False
    """Draw if the model's own settings say so."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The keys of one checkpoint, checked as far as the commands use them."""

    values: Mapping[str, Any]
    """As in `generation_config.json`, or in `config.json` if there is no such file."""

    file: str
    """The name of that file, for messages."""

    def check(self) -> None:
        """ModelNotSupportedError for a key that no command can follow, CheckpointError for a value that makes no sense."""
        for name in REFUSED:
            if self.values.get(name) not in (None, False, []):
                raise ModelNotSupportedError(
                    f"the checkpoint's {self.file} sets {name}, which no command of ours can follow; "
                    "remove it from a copy of the checkpoint, or use transformers"
                )
        several = self._integer("num_return_sequences", 1)
        if several > 1 and self.values.get("do_sample") is not True and self._integer("num_beams", 1) == 1:
            raise CheckpointError(
                f"{self.file}: num_return_sequences is {several} without beams or sampling, which transformers refuses, too; make it 1"
            )
        for name in TOKENS:
            value = self.values.get(name)
            if not all(type(token) is int for token in (value if isinstance(value, list) else [value]) if value is not None):
                raise CheckpointError(f"{self.file}: {name} is {shown(value)}, expected a token id, or several")
        for name in (*SAMPLING, "repetition_penalty"):
            self.number(name, 1.0)
        self.stop_strings()

    @property
    def samples(self) -> bool:
        """The model's own settings say that tokens are to be drawn."""
        return self.values.get("do_sample") is True

    def sampling(self, wanted: Wanted) -> dict[str, float]:
        """temperature, top_k, top_p and min_p to draw with; empty = the likeliest token.

        If the model's own settings decide, they are transformers' (50 for top_k, if they do not say); else top_k is off unless
        asked for, and the rest is the checkpoint's.
        """
        own = wanted.as_model_says and self.samples
        if wanted.is_greedy or wanted.asked.get("temperature") == 0 or not (wanted.asked or own):
            return {}
        top_k = self._integer("top_k", DEFAULT_TOP_K) if own else 0
        found: dict[str, float] = {
            "temperature": self.number("temperature", 1.0), "top_k": top_k,
            "top_p": min(1.0, self.number("top_p", 1.0)), "min_p": self.number("min_p", 0.0),
        }  # fmt: skip
        found.update(wanted.asked)
        return found if found["temperature"] > 0 else {}

    def remarks(self, wanted: Wanted) -> list[str]:
        """Lines for a person: what the checkpoint's settings decide, and what they ask for in vain."""
        drawn, found = self.sampling(wanted), []
        names = [name for name in SAMPLING if self.values.get(name) is not None and name not in wanted.asked]
        if drawn and wanted.as_model_says and self.samples and (names or not wanted.asked):
            said = ", ".join(f"{name} {drawn[name]:g}" for name in names) or "temperature 1"
            found.append(f"sampling as the model's settings say: {said}; --greedy picks the likeliest")
        if other := [name for name in _OTHER_TEXT if self.values.get(name) not in (None, STATED[name])]:
            said = ", ".join(f"{name} ({str(self.values[name])[:20]})" for name in other)
            found.append(
                f"the checkpoint's {self.file} asks for {said}; commands answer with one token after the other, without it"
            )
        return found

    def number(self, name: str, otherwise: float) -> float:
        value = self.values.get(name)
        if value is None:
            return otherwise
        most = 1.0 if name == "min_p" else 1e6
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise CheckpointError(f"{self.file}: {name} is {shown(value)}, expected a number from 0 to {most:g}")
        if value == 0 and name == "repetition_penalty":
            raise CheckpointError(f"{self.file}: {name} is 0, expected a number above 0")
        return float(value)

    def _integer(self, name: str, otherwise: int) -> int:
        value = self.values.get(name)
        if value is None:
            return otherwise
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{self.file}: {name} is {shown(value)}, expected a whole number, 0 or more")
        return value

    def stop_strings(self) -> tuple[str, ...]:
        """Texts at which an answer ends."""
        value = self.values.get("stop_strings")
        texts = [value] if isinstance(value, str) else value or []
        is_right = isinstance(texts, list) and all(isinstance(text, str) and 0 < len(text) <= MAX_STOP for text in texts)
        if not is_right or len(texts) > MAX_STOPS:
            raise CheckpointError(
                f"{self.file}: stop_strings is {shown(value)}, expected up to {MAX_STOPS} texts of at most {MAX_STOP} letters"
            )
        return tuple(texts)

    def others(self) -> list[str]:
        """Keys that change text and are left to transformers."""
        mute = {*STATED, *REFUSED, *SAMPLING, *TOKENS, "do_sample", "max_new_tokens", "transformers_version"}
        return sorted(name for name, value in self.values.items() if value is not None and name not in mute and name[0] != "_")
