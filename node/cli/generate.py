"""`swarm generate`: one prompt in, its continuation out as it comes."""

from __future__ import annotations

import sys
import time

from node.cli.asking import Asking, Sampling, open_model, summary
from node.cli.console import remark, write_piece
from node.cli.text import TextOut
from protocols.errors import BadRequestError


def run(asking: Asking, sampling: Sampling, prompt: str, with_stats: bool) -> None:
    """Write the continuation of `prompt` (`-` = what stdin holds, without its last line end) to stdout, a piece at a time."""
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    with open_model(asking) as model:
        ids = model.tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        if ids.shape[1] == 0:
            raise BadRequestError("the prompt is empty; expected some text to go on with")
        guessing = sampling.speculation.arguments(model)
        sampling.sow()
        out = TextOut(model.tokenizer, write_piece)
        started_s, cache = time.monotonic(), model.new_cache()
        try:
            model.generate(ids, streamer=out, past_key_values=cache, **sampling.arguments(), **guessing)
        finally:
            if out.text:
                print(flush=True)
        if with_stats or sys.stderr.isatty():
            remark(summary(out, started_s, cache, cache.trips if guessing else None))
