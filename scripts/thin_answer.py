"""What a thin client is told, beside transformers on one machine."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from volunteers import Node, VolunteerError, console

THIN_TOKENS = 24
"""What the client that holds nothing asks for."""


@dataclass(frozen=True, kw_only=True)
class ThinAnswer:
    """What a client that holds nothing was told, beside what transformers says on one machine."""

    text: str
    alone: str
    seconds: float
    """Of the whole command, from its start to its end."""


def ask_thinly(model_dir: Path, prompt: str, nodes: list[Node], folder: Path, *, name: str | None = None) -> ThinAnswer:
    """`swarm generate --thin`, a process without weights, torch or a file of the model: it knows a name and an address.

    name: in the swarm; None: that of the directory."""
    peer = next(node.said["multiaddr"] for node in nodes if not node.is_killed)
    command = [sys.executable, "-m", "node", "generate", name or model_dir.name, prompt, "--thin", "--peer", peer]
    command += ["--max-new-tokens", str(THIN_TOKENS), "--data-dir", str(folder / "thin")]
    started_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VolunteerError(f"the thin client failed: {done.stderr.strip()}")
    text, seconds = done.stdout.removesuffix("\n"), time.monotonic() - started_s
    return ThinAnswer(text=text, alone=_alone(model_dir, prompt), seconds=seconds)


def _alone(model_dir: Path, prompt: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
    output = model.generate(ids, max_new_tokens=THIN_TOKENS, do_sample=False)[0, ids.shape[1] :]
    said: str = tokenizer.decode(output, skip_special_tokens=True)
    return said


def report_thin(thin: ThinAnswer) -> bool:
    """What it said, and whether that was right."""
    is_equal = thin.text == thin.alone
    verdict = "[bold green]the same[/]" if is_equal else f"[bold red]NOT the same[/] ({thin.alone!r})"
    console.print(thin.text, markup=False)
    console.print(f"{THIN_TOKENS} tokens in {thin.seconds:.1f} s, its start included; {verdict} as transformers alone says")
    return is_equal
