"""`swarm generate`: one prompt in, its continuation out as it comes."""

from __future__ import annotations

import sys
import time

from node.cli import utf8
from node.cli.asking import ClientSettings, Sampling, summary
from node.cli.console import remark, write_piece
from node.cli.speaking import new_out, open_speaker
from protocols.errors import BadRequestError


def run(asking: ClientSettings, sampling: Sampling, prompt: str, with_stats: bool, is_thin: bool) -> None:
    """Write the continuation of `prompt` (`-` = what stdin holds, without its last line end) to stdout, a piece at a time."""
    text = utf8.read_stdin("the prompt (stdin)") if prompt == "-" else prompt
    with open_speaker(asking, sampling, is_thin) as speaker:
        ids = speaker.encode(text)
        if not ids:
            raise BadRequestError("the prompt is empty; expected some text to go on with")
        out, started_s = new_out(speaker), time.monotonic()
        try:
            trips = speaker.answer(ids, out, sampling.max_new_tokens)
        finally:
            if out.text:
                write_piece("\n")
        if with_stats or sys.stderr.isatty():
            remark(summary(out, started_s, speaker.journey, trips))
