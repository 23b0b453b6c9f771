"""A run that trains and serves, with clients that ask continuously.

Nodes are processes; trainer and clients are in this one. After each step to a version that is served, the trainer's work copies the state
of all units from the stages, so that each answer can be compared with Hugging Face's `generate` on the weights of the version it names.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from node.cli.flags.command_options import Hosting
from node.cli.host.node import read as read_config
from node.config import Serve
from node.runs.trainer.part import AfterStep
from node.runs.trainer.publisher import PUBLISH_EVERY_S
from node.runs.trainer.trainer import TrainConfig, run_trainer
from node.training.spec.reading import read
from protocols.units import Blocks, Ends, Unit
from swarm.models.fresh import FreshModel
from swarm.models.storing import stored_tensors
from swarm.rpc.pool import ChannelPool
from swarm.thin.generation import generate
from swarm.thin.model import ThinModel, open_model
from swarm.thin.sampling import Chooser, TokenSampling
from swarm.training.coordinator import Step
from swarm.training.members import Members
from swarm.training.snapshot import PARAMETER
from swarm.training.state_download import Wanted, download
from tests.end_to_end.processes import NodeProcess, ProcessPool

SERVE_EVERY = 2


def fields_of(steps: int, batch_tokens: int) -> dict[str, object]:
    """Of the run file."""
    return {
        "training.steps": steps, "training.batch_tokens": batch_tokens, "checkpoint.every_steps": SERVE_EVERY,
        "serving.every_versions": SERVE_EVERY,
    }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    prompt: list[int]
    tokens: list[int]
    versions: tuple[int, ...]
    num_replaced: int
    route: tuple[str, ...]
    """PeerIDs."""
    seconds: float


@dataclass
class ServedRun:
    """One run: its nodes, its answers, and the weights of the versions that were served."""

    run_file: Path
    folder: Path
    pool: ProcessPool
    num_clients: int = 2
    num_tokens: int = 8
    nodes: list[NodeProcess] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    weights: dict[int, dict[Unit, dict[str, torch.Tensor]]] = field(default_factory=dict)
    """By version and unit."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Of each step, by the version that it ended with."""
    deaths: dict[int, int] = field(default_factory=dict)
    """By version: which hop of the latest answer's route is killed (-9) after the step to it."""
    limit_s: float | None = None
    is_cut: bool = False
    """The limit came before the run's last version."""
    publish_every_s: float = PUBLISH_EVERY_S
    awaits_answers: bool = False
    """The run goes on from a version that is served once an answer names it."""
    stepped_s: float = 0.0
    """When the work after the latest step had ended (monotonic)."""
    dead: list[str] = field(default_factory=list)
    """PeerIDs of those that were."""
    _has_answered: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, *spans: str) -> None:
        """A node for each of these spans."""
        for blocks in spans:
            peers = ["--peer", self.nodes[0].said["multiaddr"]] if self.nodes else []
            name = f"node{len(self.nodes)}"
            words = ["node", "--run", str(self.run_file), "--blocks", blocks, *peers, "--listen", "127.0.0.1:0", "--no-lan"]
            self.nodes.append(self.pool.start(name, [*words, "--data-dir", str(self.folder / name)]))
            self.nodes[-1].wait_for("ready")

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(node.said["multiaddr"] for node in self.nodes)

    async def train(self) -> None:
        """To the run's last version, or for `limit_s`, while the clients ask; one asks afterwards, too."""
        asking = [asyncio.create_task(self._ask_on(number)) for number in range(self.num_clients)]
        try:
            async with asyncio.timeout(self.limit_s):
                if self.awaits_answers:
                    await self._until_answered(0)
                await self._trainer()
        except TimeoutError:
            self.is_cut = True
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        async with self._model() as model:
            await self._ask(model, [7, 8, 9])

    async def _trainer(self) -> None:
        file, flags = read(self.run_file), Hosting(
            listen="127.0.0.1:0", peer=list(self.peers), lan=False, data_dir=self.folder / "trainer"
        )  # fmt: skip
        config = TrainConfig(
            file=file, node=read_config([Serve(model=file.name)], flags), folder=self.folder / "runs",
            publish_every_s=self.publish_every_s,
        )  # fmt: skip
        await run_trainer(config, lambda event: None, also=[self._copying])

    def _copying(self, members: Members, pool: ChannelPool) -> AfterStep:
        async def after(step: Step) -> None:
            self.seconds[step.version] = time.monotonic() - self.stepped_s
            if step.version % SERVE_EVERY == 0:
                self.weights[step.version] = await _weights(members, pool, step.version)
                if self.awaits_answers:
                    await self._until_answered(step.version)
            if (hop := self.deaths.get(step.version)) is not None:
                self.dead.append(self.answers[-1].route[hop])
                next(node for node in self.nodes if node.said["multiaddr"].endswith(self.dead[-1])).end(signal.SIGKILL)
            self.stepped_s = time.monotonic()

        self.stepped_s = time.monotonic()
        return after

    async def _until_answered(self, version: int) -> None:
        async with asyncio.timeout(180.0):
            while not any(version in answer.versions for answer in self.answers):
                self._has_answered.clear()
                await self._has_answered.wait()

    # --- clients

    def _model(self) -> Any:
        return open_model(read(self.run_file).name, peers=self.peers, root=self.folder / "client" / "weights")

    async def _ask_on(self, number: int) -> None:
        draw = random.Random(number)
        async with self._model() as model:
            while True:
                prompt = [draw.randrange(3, 250) for _ in range(draw.randrange(2, 7))]
                try:
                    await self._ask(model, prompt)
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    async def _ask(self, model: ThinModel, prompt: list[int]) -> None:
        sequence, began_s = model.start(), time.monotonic()
        try:
            limits = model.limits(self.num_tokens)
            async with aclosing(generate(sequence, prompt, Chooser(TokenSampling()), limits)) as found:
                tokens = [token async for token in found]
            session: Any = sequence.session
            answer = Answer(
                prompt=prompt, tokens=tokens, versions=session.versions, num_replaced=session.replaced,
                route=tuple(hop.peer for hop in session.route), seconds=time.monotonic() - began_s,
            )  # fmt: skip
            self.answers.append(answer)
            self._has_answered.set()
        finally:
            await model.end(sequence)


async def _weights(members: Members, pool: ChannelPool, version: int) -> dict[Unit, dict[str, torch.Tensor]]:
    """Of the whole model, from the stages, which keep each version that is served until the next one."""
    holders: dict[Unit, list[Any]] = {}
    for stage in members.stages:
        for unit in stage.units:
            holders.setdefault(unit, []).append(stage.record)
    wanted = [Wanted(unit=unit, version=version, check=lambda form: None, sources=records) for unit, records in holders.items()]
    async with aclosing(download(pool, members.run, wanted)) as snapshots:
        return {snapshot.unit: snapshot.kind(PARAMETER) async for snapshot in snapshots}


@dataclass
class Verdict:
    """What the answers are worth."""

    num_answers: int = 0
    wrong: list[Answer] = field(default_factory=list)
    """Not what Hugging Face's `generate` gives on the version that they name."""
    mixed: list[Answer] = field(default_factory=list)
    """Of more than one version, or of none."""
    by_version: Counter[int] = field(default_factory=Counter)
    num_replaced: int = 0
    slowest_s: float = 0.0


def judge(run: ServedRun) -> Verdict:
    """Compare each answer with Hugging Face's `generate` on one machine."""
    verdict = Verdict(len(run.answers))
    for version, answers in _grouped(run.answers).items():
        model = model_of(run, version)
        for answer in answers:
            verdict.by_version[version] += 1
            verdict.num_replaced += answer.num_replaced
            verdict.slowest_s = max(verdict.slowest_s, answer.seconds)
            if len(answer.versions) != 1:
                verdict.mixed.append(answer)
            elif generated(model, answer.prompt, run.num_tokens) != answer.tokens:
                verdict.wrong.append(answer)
    return verdict


def _grouped(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    groups: dict[int, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.versions[0] if answer.versions else 0, []).append(answer)
    return groups


def model_of(run: ServedRun, version: int) -> Any:
    """On one machine. Version 0 is drawn from the seed, as the nodes do."""
    config = transformers.AutoConfig.from_pretrained(run.run_file.parent)
    stored: dict[str, torch.Tensor] = {}
    if version:
        for unit, tensors in run.weights[version].items():
            assert isinstance(unit, Blocks | Ends)
            stored |= stored_tensors(config, unit, tensors)
    else:
        fresh = FreshModel(config)
        for unit in fresh.tensors:
            stored |= fresh.draw(unit, read(run.run_file).seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing = model.load_state_dict(stored, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    return model


@torch.inference_mode()
def generated(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=num_tokens,
        do_sample=False,
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    )
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found
