"""A model with embedding and head here, for the commands.

`generate` and `chat` run transformers' own `generate` over the swarm's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from node.cli.flags.asking import ClientSettings, Sampling, open_model
from protocols.errors import BadRequestError, CheckpointError
from swarm.thin.defaults import read_settings
from swarm.thin.text import TextOut
from swarm.thin.tokenizing.templates import Message, Tokenizer, ids_of


@contextmanager
def open_speaker(asking: ClientSettings, sampling: Sampling) -> Iterator[FullSpeaker]:
    """The model, its ends loaded and its swarm joined; closed again whatever happens."""
    with open_model(asking) as model:
        speaker = FullSpeaker(model, sampling)
        sampling.sow()
        try:
            yield speaker
        finally:
            speaker.forget()
            speaker.tokenizer.sandbox.close()


def _state_outputs(model: Any) -> None:
    """`config.json` may ask every forward for a tuple, attentions or hidden states: no command shows those."""
    for module in model.modules():
        for name, value in {"return_dict": True, "output_attentions": False, "output_hidden_states": False}.items():
            if hasattr(module, "config"):
                setattr(module.config, name, value)


class FullSpeaker:
    """As `node.cli.ask.speaking.Speaker` says."""

    def __init__(self, model: Any, sampling: Sampling) -> None:
        from swarm.client.tokenizer import of_model

        self._model, self._sampling = model, sampling
        self.settings = read_settings(model.remote.path)
        sampling.check(self.settings)
        _state_outputs(model)
        self.tokenizer: Tokenizer = of_model(model)
        self._guessing = sampling.speculation.arguments(model)
        self._cache: Any = None
        self._held: list[int] = []

    @property
    def max_positions(self) -> int | None:
        limit: int | None = self._model.remote.max_positions
        return limit

    @property
    def has_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    @property
    def journey(self) -> Any:
        return getattr(self._cache, "journey", None)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def render(self, messages: Sequence[Message]) -> list[int]:
        return ids_of(self.tokenizer, messages)

    def answer(self, ids: Sequence[int], out: TextOut, max_new_tokens: int) -> int | None:
        self._cut_back(ids)
        cache, before = self._cache, self._cache.trips
        try:
            sequence = self._generate(ids, out, max_new_tokens)
        except (ValueError, TypeError, NotImplementedError) as error:  # what transformers raises on settings that it dislikes
            others = self.settings.others()
            if not others:
                raise
            raise CheckpointError(
                f"transformers refuses the checkpoint's {self.settings.file} ({', '.join(others)[:200]}): "
                f"{' '.join(str(error).split())[:300]}; correct it in a copy of the checkpoint"
            ) from error
        self._held = sequence[0].tolist()[: cache.get_seq_length()]
        return cache.trips - before if self._guessing else None

    def _generate(self, ids: Sequence[int], out: TextOut, max_new_tokens: int) -> Any:
        import torch

        from swarm.client.guessing import ends_when

        key = self._model.remote.cache_key
        return self._model.generate(
            torch.tensor([list(ids)], dtype=torch.long, device=self._model.device),
            streamer=out,
            stopping_criteria=ends_when(lambda: out.is_stopped),
            **{**self._sampling.arguments(self.settings), "max_new_tokens": max_new_tokens, **self._guessing},
            **({key: self._cache} if key else {}),
        )

    def _cut_back(self, ids: Sequence[int]) -> None:
        """Crop the cache to what it has in common with `ids`, at least one token short of them: something must be fed."""
        if self._cache is None or self._cache.is_closed:
            self._cache, self._held = self._model.new_cache(), []
        pairs = enumerate(zip(self._held, ids, strict=False))
        common = next((index for index, (old, new) in pairs if old != new), min(len(self._held), len(ids)))
        common = min(common, len(ids) - 1)
        if common < len(self._held) and not self._can_crop():  # a running state holds a text, and not each of its tokens
            self.forget()
            self._cache = self._model.new_cache()
        elif common < len(self._held):
            self._cache.crop(common - len(self._held))
            self._held = self._held[:common]

    def _can_crop(self) -> bool:
        from swarm.client.checks import check_rewindable

        try:
            check_rewindable(self._model.config, bool(self._model._is_stateful))
        except BadRequestError:
            return False
        return True

    def stop_now(self) -> None:
        raise KeyboardInterrupt

    def forget(self) -> None:
        cache, self._cache, self._held = self._cache, None, []
        if cache is not None:
            cache.close()
