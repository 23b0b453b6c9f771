"""What a checkpoint says about generating.

End tokens, sampling defaults and limits, from its JSON files alone.

transformers takes whatever `generation_config.json` says into account. What would change tokens in a way that is not known here is refused
by name, so that an answer is either transformers' or an error that says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.checkpoints.bounds import MAX_CONFIG_BYTES, read_json
from swarm.thin.sampling import TokenSampling
from swarm.thin.settings import REFUSED, SAMPLING, STATED, TOKENS, Settings, Wanted

MAX_SETTINGS_BYTES = 1 << 20
"""Of `generation_config.json`."""

_PROCESSORS: dict[str, tuple[object, ...]] = {
    "encoder_repetition_penalty": (None, 1),
    "guidance_scale": (None, 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (None, 0)),
    **dict.fromkeys(("bad_words_ids", "begin_suppress_tokens", "sequence_bias"), (None, [])),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), (None,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config"), (None,)),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values"), (None, False)),
}
"""Settings that change every choice and are not known here, with the values at which they change none."""

_WARPERS: dict[str, tuple[object, ...]] = {
    "typical_p": (None, 1),
    "top_h": (None,),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), (None, 0)),
}
"""The same of settings that matter only if tokens are drawn."""

_NAMES = (
    "do_sample",
    "stop_strings",
    "repetition_penalty",
    "suppress_tokens",
    *SAMPLING,
    *STATED,
    *REFUSED,
    *_PROCESSORS,
    *_WARPERS,
)
"""Settings that an old checkpoint may have in its `config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """A checkpoint's own settings."""

    ends: frozenset[int]
    """Tokens after which an answer is over."""

    settings: Settings

    vocab_size: int
    hidden_size: int | None
    max_positions: int | None
    """Longest sequence, if the config says so; the nodes know it in any case."""

    def sampling(self, wanted: Wanted, seed: int | None) -> TokenSampling:
        """How tokens are picked if a person asks for `wanted`: as in the full client.

        ModelNotSupportedError for a setting that changes tokens and is not known here.
        """
        drawn = self.settings.sampling(wanted)
        for name, neutral in (_PROCESSORS | (_WARPERS if drawn else {})).items():
            if self.settings.values.get(name) not in neutral:
                raise ModelNotSupportedError(
                    f"the checkpoint's {self.settings.file} sets {name} to {str(self.settings.values[name])[:60]}, "
                    "which a thin client does not know; ask without --thin"
                )
        penalty = self.settings.number("repetition_penalty", 1.0)
        sampling = TokenSampling(repetition_penalty=penalty, suppressed=self._suppressed(), seed=seed)
        fields: dict[str, Any] = dict(drawn)
        return replace(sampling, **fields)

    def _suppressed(self) -> tuple[int, ...]:
        value = self.settings.values.get("suppress_tokens") or []
        if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
            raise CheckpointError(f"{self.settings.file}: suppress_tokens is {str(value)[:40]}, expected token ids")
        return tuple(value)


def read_defaults(folder: Path) -> Defaults:
    """Read `config.json` and, if there is one, `generation_config.json`; CheckpointError if they do not parse."""
    config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    settings = read_settings(folder)
    vocab_size = _first(text, ("vocab_size",))
    if vocab_size is None:
        raise ModelNotSupportedError(
            f"{folder}/config.json does not say its vocab_size, which a thin client needs; ask without --thin"
        )
    return Defaults(
        ends=_ends(settings.values.get("eos_token_id")),
        settings=settings,
        vocab_size=vocab_size,
        hidden_size=_first(text, ("hidden_size", "n_embd", "d_model", "dim")),
        max_positions=_first(text, ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")),
    )


def read_settings(folder: Path) -> Settings:
    """What `generation_config.json` says about generating, or `config.json` if there is no such file; checked."""
    own = folder / "generation_config.json"
    values = (
        read_json(own, MAX_SETTINGS_BYTES) if own.exists() else _of_the_model(read_json(folder / "config.json", MAX_CONFIG_BYTES))
    )
    settings = Settings(values, own.name if own.exists() else "config.json")
    settings.check()
    return settings


def _of_the_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for generating in `config.json` itself, as old checkpoints have them: its own, else those of the model inside it."""
    inner: object = next((config[name] for name in ("decoder", "generator", "text_config") if config.get(name)), None)
    both = (config, inner if isinstance(inner, dict) else {})
    found = {name: next((one[name] for one in both if one.get(name) is not None), None) for name in (*_NAMES, *TOKENS)}
    return {name: value for name, value in found.items() if value is not None}


def _ends(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(token for token in values if type(token) is int)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)
