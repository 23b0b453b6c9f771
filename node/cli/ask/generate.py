"""`swarm generate`: one prompt in, its continuation out as it comes."""

from __future__ import annotations

import shlex
import sys
import time

from node.cli.ask.speaking import Speaker, new_out, open_speaker
from node.cli.flags.asking import ClientSettings, Sampling, say_followed, summary
from node.cli.terminal.console import remark, write_piece
from protocols.errors import BadRequestError


def run(asking: ClientSettings, sampling: Sampling, prompt: str, with_stats: bool, is_thin: bool) -> None:
    """Write the continuation of `prompt` to stdout, a piece at a time."""
    with open_speaker(asking, sampling, is_thin) as speaker:
        ids = speaker.encode(prompt)
        if not ids:
            raise BadRequestError("the prompt is empty; expected some text to go on with")
        out, started_s = new_out(speaker), time.monotonic()
        try:
            trips = speaker.answer(ids, out, sampling.max_new_tokens)
        finally:
            if out.text:
                write_piece("\n")
        say_followed((), speaker.journey)
        if not out.text.strip():
            remark(without_text(speaker, asking.model, out.num_tokens))
        if with_stats or sys.stderr.isatty():
            remark(summary(out, started_s, speaker.journey, trips))
        if with_stats and speaker.journey is not None:
            remark(speaker.journey.timings.told())


def without_text(speaker: Speaker, model: str, num_tokens: int) -> str:
    """Said if no text came: an end of text as the first token, as chat models give it to a question that is no chat; or white space."""
    said = "the model ended its answer at once, without text"
    if num_tokens > 1:
        said = f"the answer has no text: its {num_tokens} tokens are white space or special tokens"
    return f"{said}; it is made for chats: ask it with `swarm chat {shlex.quote(model)}`" if speaker.has_template else said
