"""What a checkpoint itself says about generating: end tokens, sampling defaults and limits, from its JSON files alone.

transformers takes whatever `generation_config.json` says into account. What would change tokens in a way that is not known here is refused
by name, so that an answer is either transformers' or an error that says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.models.bounds import read_json
from swarm.thin.choosing import Choosing

_KNOWN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0, "suppress_tokens": None}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "typical_p", "length_penalty"), (None, 1)),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale"), (None, 1)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff"), (None, 0)),
    **dict.fromkeys(("min_length", "min_new_tokens", "diversity_penalty", "penalty_alpha"), (None, 0)),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "begin_suppress_tokens", "sequence_bias"), (None, [])),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "stop_strings", "max_time", "top_h"), (None,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "dola_layers"), (None,)),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "token_healing", "use_mtp"), (None, False)),
}
"""Settings that change tokens and are not known here, with the values at which they change none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """A checkpoint's own settings."""

    ends: frozenset[int]
    """Tokens after which an answer is over."""

    settings: Mapping[str, Any]
    """As in `generation_config.json`; only what stands there."""

    vocab_size: int
    hidden_size: int | None
    max_positions: int | None
    """Longest sequence, where the config says so; the nodes know it in any case."""

    def choosing(self, asked: Mapping[str, Any], seed: int | None) -> Choosing:
        """How tokens are picked where a person asked for `asked` (temperature, top_p, top_k; absent = not asked for).

        Nothing asked, or temperature 0: greedily. As in the full client: top_k is off unless asked for, the rest is the checkpoint's.
        """
        for name, neutral in _NEUTRAL.items():
            if self.settings.get(name) not in neutral:
                raise ModelNotSupportedError(
                    f"the checkpoint's generation_config.json sets {name} to {str(self.settings[name])[:60]}, "
                    "which a thin client does not know; ask without --thin"
                )
        penalty = float(self._number("repetition_penalty", 1.0))
        choosing = Choosing(repetition_penalty=penalty, suppressed=self._suppressed(), seed=seed)
        if not asked or asked.get("temperature") == 0:
            return choosing
        own = {name: float(self._number(name, 0.0 if name == "min_p" else 1.0)) for name in ("temperature", "top_p", "min_p")}
        return replace(choosing, **{**own, "top_k": 0, **asked})

    def _number(self, name: str, otherwise: float) -> float:
        value = self.settings.get(name)
        if value is None:
            return otherwise
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            raise CheckpointError(f"generation_config.json: {name} is {str(value)[:40]}, expected a number")
        return value

    def _suppressed(self) -> tuple[int, ...]:
        value = self.settings.get("suppress_tokens") or []
        if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
            raise CheckpointError(f"generation_config.json: suppress_tokens is {str(value)[:40]}, expected token ids")
        return tuple(value)


def read_defaults(folder: Path) -> Defaults:
    """Read `config.json` and, where there is one, `generation_config.json`; CheckpointError where they do not parse."""
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    own = folder / "generation_config.json"
    settings = read_json(own) if own.exists() else _of_the_model(config)
    vocab_size = _first(text, ("vocab_size",))
    if vocab_size is None:
        raise ModelNotSupportedError(
            f"{folder}/config.json does not say its vocab_size, which a thin client needs; ask without --thin"
        )
    return Defaults(
        ends=_ends(settings.get("eos_token_id")),
        settings=settings,
        vocab_size=vocab_size,
        hidden_size=_first(text, ("hidden_size", "n_embd", "d_model", "dim")),
        max_positions=_first(text, ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")),
    )


def _of_the_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for generating in `config.json` itself, as old checkpoints have them: its own, else those of the model inside it."""
    inner: object = next((config[name] for name in ("decoder", "generator", "text_config") if config.get(name)), None)
    both = (config, inner if isinstance(inner, dict) else {})
    names = (*_KNOWN, *_NEUTRAL, "eos_token_id")
    found = {name: next((one[name] for one in both if one.get(name) is not None), None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _ends(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(token for token in values if type(token) is int)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)
