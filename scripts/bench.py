"""Benchmarks against a reference in the same run, interleaved; machines are noisy, so ratios and the best of many are what to trust.

`inference`: one stream of a tiny 4-block Llama (nearly all of it is overhead), decoded locally by transformers and over 1, 2 and
4 nodes, in turn. Overhead per hop = (time per token over n hops - local time per token) / n: what a hop costs beyond its compute.
Every process has one torch thread; all are on this machine, over loopback, with TLS.

Run: scripts/bench inference
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from volunteers import Node, VolunteerError, console, start_node, stop

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs" / "bench" / "inference.json"
NUM_BLOCKS = 4
PROMPT_TOKENS = 16

Decode = Callable[[], list[float]]
"""One repeat: milliseconds of each decoded token, the first one (the prompt's) included."""


def make_tiny(directory: Path) -> Path:
    """A random Llama of 4 blocks, hidden 64, as a checkpoint directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def start_swarm(num_nodes: int, model: Path, folder: Path) -> list[Node]:
    """A swarm of its own, whose nodes share the blocks evenly."""
    place = folder / f"swarm-{num_nodes}"
    place.mkdir()
    share = NUM_BLOCKS // num_nodes
    nodes: list[Node] = []
    for index in range(num_nodes):
        peers = [nodes[0].wait_for("multiaddr")] if nodes else []
        nodes.append(start_node(f"node{index}", f"{index * share}:{(index + 1) * share}", model, peers, place))
    for node in nodes:
        node.wait_for("ready")
    return nodes


class Clock:
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.at_s: list[float] = [time.perf_counter()]

    def put(self, value: Any) -> None:
        self.at_s.append(time.perf_counter())

    def end(self) -> None:
        pass

    def gaps_ms(self) -> list[float]:
        """Since the call for the first token (put number 2: the prompt itself is number 1), then from token to token."""
        times = [self.at_s[0], *self.at_s[2:]]
        return [(later - earlier) * 1e3 for earlier, later in pairwise(times)]


def decoder(model: Any, ids: Any, num_tokens: int) -> Decode:
    def decode() -> list[float]:
        clock = Clock()
        model.generate(ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, streamer=clock)
        return clock.gaps_ms()

    return decode


def measure(paths: dict[str, Decode], repeats: int) -> dict[str, list[list[float]]]:
    """All paths in turn, `repeats` times, after one round that is not counted."""
    from rich.progress import track

    runs: dict[str, list[list[float]]] = {name: [] for name in paths}
    for repeat in track(range(repeats + 1), description="measuring", console=console, transient=True):
        for name, decode in paths.items():
            gaps = decode()
            if repeat:
                runs[name].append(gaps)
    return runs


def summarize(runs: dict[str, list[list[float]]], hops: dict[str, int]) -> dict[str, Any]:
    """Per path: median milliseconds per token of each repeat, best and median of those; and the overhead per hop."""
    tokens = {name: [statistics.median(gaps[1:]) for gaps in repeats] for name, repeats in runs.items()}
    firsts = {name: [gaps[0] for gaps in repeats] for name, repeats in runs.items()}
    rows = []
    for name in runs:
        row: dict[str, Any] = {"path": name, "hops": hops[name]}
        for what, values in (("token_ms", tokens), ("first_token_ms", firsts)):
            row[what] = {"best": round(min(values[name]), 3), "median": round(statistics.median(values[name]), 3)}
        if hops[name]:
            beyond = [(there - here) / hops[name] for there, here in zip(tokens[name], tokens["local"], strict=True)]
            best = (min(tokens[name]) - min(tokens["local"])) / hops[name]
            row["overhead_per_hop_ms"] = {"best": round(best, 3), "median": round(statistics.median(beyond), 3)}
        rows.append(row)
    return {"rows": rows}


def table(result: dict[str, Any]) -> str:
    """Markdown, for README and for the screen."""
    lines = [
        f"Tiny Llama ({NUM_BLOCKS} blocks, hidden 64, float32), one stream, {result['repeats']} interleaved repeats of "
        f"{result['tokens']} tokens, best (median) in ms; {result['machine']}.",
        "",
        "| path | per token | overhead per hop | first token, prompt of 16 |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [_pair(row[what]) if what in row else "" for what in ("token_ms", "overhead_per_hop_ms", "first_token_ms")]
        lines.append(f"| {row['path']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _pair(values: dict[str, float]) -> str:
    return f"{values['best']:.2f} ({values['median']:.2f})"


def run_inference(repeats: int, num_tokens: int, num_nodes: list[int]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from swarm.client import SwarmModelForCausalLM

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    folder, nodes, models = Path(tempfile.mkdtemp(prefix="murmuration-bench-")), list[Node](), list[Any]()
    try:
        checkpoint = make_tiny(folder / "tiny-llama")
        local = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        ids = torch.randint(3, 256, (1, PROMPT_TOKENS))
        paths, hops = {"local": decoder(local, ids, num_tokens)}, {"local": 0}
        for number in num_nodes:
            with console.status(f"a swarm of {number} starts"):
                swarm = start_swarm(number, checkpoint, folder)
                nodes += swarm
                models.append(
                    SwarmModelForCausalLM.from_pretrained(checkpoint, peers=[swarm[0].said["multiaddr"]], dtype="float32")
                )
            name = f"{number} node{'s' if number > 1 else ''}"
            paths[name], hops[name] = decoder(models[-1], ids, num_tokens), number
        result = summarize(measure(paths, repeats), hops)
    finally:
        for model in models:
            model.close()
        stop(nodes)
        shutil.rmtree(folder, ignore_errors=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    return {"benchmark": "inference", "machine": machine, "repeats": repeats, "tokens": num_tokens, **result}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("benchmark", choices=["inference"])
    parser.add_argument("--repeats", type=int, default=9, help="counted rounds (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of a repeat (default: %(default)s)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4], help="swarms (default: 1 2 4)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file (default: docs/bench/inference.json)")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        result = run_inference(arguments.repeats, arguments.tokens, arguments.nodes)
    except VolunteerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(f"bench: the numbers are in {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
