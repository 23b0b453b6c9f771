"""`swarm chat`: a conversation whose K/V stay at the nodes between turns.

A turn sends only what is new. Where the chat template renders the past differently than it was generated, the cache is cut
back to what both have in common.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from node.cli.asking import Asking, Sampling, open_model, summary
from node.cli.console import remark, write_piece
from node.cli.text import TextOut
from protocols.errors import SwarmError

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, /help says this; anything else is said to the model"
PLAIN_STOP = "\nUser:"
"""Where an answer ends, for a model that has no chat template and would go on with our part."""

Message = dict[str, str]


@dataclass(slots=True)
class Conversation:
    """What was said, as messages and as the token ids that the nodes hold."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    cache: Any = None

    def reset(self) -> None:
        """Forget everything but the system's words; the session at the nodes ends."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.ids = []
        if self.cache is not None:
            self.cache.close()
            self.cache = None


def run(asking: Asking, sampling: Sampling, system: str | None, with_stats: bool) -> None:
    """Read lines from stdin, answer each; ends with /exit or the end of stdin."""
    with open_model(asking) as model:
        tokenizer = model.tokenizer
        conversation = Conversation(system)
        conversation.reset()
        guessing = sampling.speculation.arguments(model)
        sampling.sow()
        if sys.stdin.isatty():
            remark(f"chatting with {asking.model}; {HELP}")
        try:
            for line in lines():
                if line == "/reset":
                    conversation.reset()
                elif line == "/help":
                    remark(HELP)
                else:
                    _turn(model, tokenizer, conversation, sampling, guessing, line, with_stats)
        finally:
            conversation.reset()


def lines() -> Iterator[str]:
    """What the person says, without blank lines, until /exit."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (arrow keys and history for `input`)
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip() if line.strip().startswith("/") else line


def _turn(
    model: Any,
    tokenizer: Any,
    conversation: Conversation,
    sampling: Sampling,
    guessing: dict[str, Any],
    line: str,
    with_stats: bool,
) -> None:
    """One question and its answer. On a terminal, one that fails is reported and forgotten."""
    import torch

    from swarm.client.guessing import ends_when

    messages = [*conversation.messages, {"role": "user", "content": line}]
    ids = render(tokenizer, messages)
    if conversation.cache is None or conversation.cache.is_closed:
        conversation.cache, conversation.ids = model.new_cache(), []
    _cut_back(conversation, ids)
    has_template = getattr(tokenizer, "chat_template", None) is not None
    out = TextOut(tokenizer, write_piece, None if has_template else PLAIN_STOP)
    stops = {} if has_template else {"stopping_criteria": ends_when(lambda: out.is_stopped)}
    started_s, trips_before = time.monotonic(), conversation.cache.trips
    try:
        sequence = model.generate(
            torch.tensor([ids], device=model.device),
            streamer=out,
            past_key_values=conversation.cache,
            **sampling.arguments(),
            **stops,
            **guessing,
        )
    except SwarmError as error:  # a person may try again, the past is still here; a script wants the exit code
        if not sys.stdin.isatty():
            raise
        remark(f"error: {error} (/reset starts over)")
        return
    finally:
        if out.text:
            print(flush=True)
    conversation.ids = sequence[0].tolist()[: conversation.cache.get_seq_length()]
    conversation.messages = [*messages, {"role": "assistant", "content": out.text.strip()}]
    if with_stats or sys.stderr.isatty():
        trips = conversation.cache.trips - trips_before if guessing else None
        remark(summary(out, started_s, conversation.cache, trips))


def render(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Token ids of the conversation so far, up to where the model speaks: by its chat template, which transformers renders
    sandboxed, else as plain turns."""
    if getattr(tokenizer, "chat_template", None) is not None:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    turns = [names[message["role"]] + message["content"] for message in messages]
    return list(tokenizer("\n".join([*turns, "Assistant:"])).input_ids)


def _cut_back(conversation: Conversation, ids: list[int]) -> None:
    """Crop the cache to what it has in common with `ids`, at least one token short of them: something must be fed."""
    held = conversation.ids
    common = next(
        (index for index, (old, new) in enumerate(zip(held, ids, strict=False)) if old != new), min(len(held), len(ids))
    )
    common = min(common, len(ids) - 1)
    if common < len(held):
        conversation.cache.crop(common - len(held))
        conversation.ids = held[:common]
