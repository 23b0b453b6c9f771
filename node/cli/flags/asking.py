"""What `generate` and `chat` share.

Opening a model of the swarm, how tokens are picked, and what an answer cost.

Torch and transformers come in with `open_model`; nothing of a node is needed to ask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.cli.flags import threads
from node.cli.flags.speculation import Speculation
from node.cli.terminal import consent
from node.cli.terminal.console import remark
from node.cli.terminal.waiting import shown
from node.config import DTYPES
from protocols.errors import ConfigError, ModelNotSupportedError
from protocols.swarm_key import SwarmKey
from protocols.words import counted
from swarm import garbage, places
from swarm.checkpoints import resolve
from swarm.meeting import keyring, known_peers
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import ANYBODY, Entry
from swarm.places import name_in_swarm
from swarm.thin.settings import SAMPLING, STATED, Settings, Wanted
from swarm.thin.text import TextOut
from swarm.waiting import Waits, loading


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Which model, and where its nodes are."""

    model: str
    peers: tuple[str, ...]
    lan: bool
    swarm: str
    model_name: str | None
    device: str
    dtype: str
    route_timeout_s: float
    priority: int
    data_dir: Path | None
    entry: Entry = ANYBODY
    """The key of a private swarm, whom we talk to, and who we are."""
    accept_new_weights: bool = False
    follow: bool = False
    """Of a model in training: go on with the newest version if the one of an answer is served no more."""

    def __post_init__(self) -> None:
        self.find.check(self.peers)
        check_range("--patience", self.route_timeout_s, "0 seconds or more", self.route_timeout_s >= 0)
        check_range("--priority", self.priority, "from -100 to 0", -100 <= self.priority <= 0)
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is one of {', '.join(DTYPES)}, got {self.dtype[:40]!r}")

    @property
    def find(self) -> FindConfig:
        """Which peers to ask if none was named, or none of those answers."""
        return find_config(self.swarm, self.lan, self.data_dir, self.entry.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is picked: greedily, unless temperature, top-p or top-k say otherwise, or the model's settings may."""

    max_new_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    speculation: Speculation
    """How many are guessed ahead: that changes the trips, never the text."""
    is_greedy: bool = False
    as_model_says: bool = False
    """Draw if the model's own settings say so."""

    def __post_init__(self) -> None:
        check_range("--max-new-tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1)
        if self.temperature is not None:
            check_range("--temperature", self.temperature, "0 (greedy) or more", 0 <= self.temperature < math.inf)
        if self.top_p is not None:
            check_range("--top-p", self.top_p, "between 0 and 1", 0 <= self.top_p <= 1)
        if self.top_k is not None:
            check_range("--top-k", self.top_k, "1 or more", self.top_k >= 1)
        drawing = {"--temperature": self.temperature, "--top-p": self.top_p, "--top-k": self.top_k}
        if self.is_greedy and (flag := next((flag for flag, value in drawing.items() if value is not None), None)):
            raise ConfigError(f"--greedy picks the likeliest token and {flag} draws one; give one of the two")
        if self.seed is not None:
            check_range("--seed", self.seed, "from -2^63 to 2^64 - 1", -(2**63) <= self.seed < 2**64)

    @property
    def wanted(self) -> Wanted:
        """For a checkpoint's settings to complete."""
        asked = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in asked.items() if value is not None}
        return Wanted(asked=given, is_greedy=self.is_greedy, as_model_says=self.as_model_says)

    def check(self, settings: Settings) -> None:
        """ModelNotSupportedError for a setting that gives other text with guesses: transformers keeps K/V of its own for it."""
        if self.speculation.is_on and settings.values.get("guidance_scale") not in (None, 1):
            raise ModelNotSupportedError(
                f"the checkpoint's {settings.file} sets guidance_scale, which goes token by token; ask without --speculate and --draft"
            )

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`, for a checkpoint with these settings."""
        drawn: dict[str, Any] = dict(settings.sampling(self.wanted))
        # None if it is not drawn although the checkpoint samples: transformers would warn about unused settings
        chosen = {"do_sample": True, **drawn, "min_p": drawn["min_p"] or None} if drawn else dict.fromkeys(SAMPLING)
        return {**STATED, "do_sample": False, "max_new_tokens": self.max_new_tokens, **chosen}

    def sow(self) -> None:
        """Make sampling repeatable, if a seed was given."""
        if self.seed is not None:
            import torch

            torch.manual_seed(self.seed)


def check_range(flag: str, got: float, expected: str, is_right: bool) -> None:
    """ConfigError if a number is out of its range: typer's own words for that leave out what it got."""
    if not is_right:
        raise ConfigError(f"{flag} is {expected}, got {got}")


def find_config(swarm: str, lan: bool, data_dir: Path | None, key: SwarmKey | None = None) -> FindConfig:
    """How a client finds peers; on a terminal, the user is asked before neighbours are joined on a new network."""
    folder = data_dir or places.data_dir()
    known_as = keyring.known_as(swarm, key)
    return FindConfig(
        known_peers=known_peers.file_of(folder, known_as),
        here=(folder, known_as),
        lan=lan,
        on_unnamed=remark,
        may_join=consent.asker(folder, swarm) if lan else None,
    )


@contextmanager
def open_model(asking: ClientSettings) -> Iterator[Any]:
    """The model, its ends loaded and its swarm joined; closed again whatever happens."""
    resolve.check(asking.model)
    threads.wait_quietly()
    with shown() as on_wait:
        on_wait(loading(asking.model_name or name_in_swarm(asking.model)))  # the imports alone take seconds
        with garbage.importing():
            from node.hardware import pick_device
            from swarm.client import connection
            from swarm.client.arguments import device_of
            from swarm.client.model import connected

        settings = connection.Settings(
            peers=asking.peers,
            swarm=asking.swarm,
            dtype=asking.dtype,
            route_timeout_s=asking.route_timeout_s,
            priority=asking.priority,
            model_name=asking.model_name,
            find=asking.find,
            entry=asking.entry,
            accept_new_weights=asking.accept_new_weights,
            follow=asking.follow,
            cache_dir=asking.data_dir or places.data_dir(),  # as a node: what one has hashed or fetched, the other knows
            waits=Waits(on_wait),
        )
        model = connected(asking.model, settings, device_of(pick_device(asking.device)))
        try:
            yield model
        finally:
            model.close()


def summary(out: TextOut, started_s: float, journey: Any, trips: int | None = None) -> str:
    """One line: how many tokens, how fast, over how many hops, and how many deaths were survived.

    trips: how often something went through the route for this answer; given where that is not once for each token.
    """
    first_s, rest_s = out.first_s - started_s, out.last_s - out.first_s
    speed = f", then {(out.num_tokens - 1) / rest_s:.1f} tokens/s" if out.num_tokens > 1 and rest_s > 0 else ""
    tokens = f"{counted(out.num_tokens, 'token')}, the first after {first_s:.2f} s{speed}"
    if trips:
        tokens += f", in {counted(trips, 'trip')} ({out.num_tokens / trips:.1f} tokens each)"
    if journey is None:
        return tokens
    return f"{tokens}, over {counted(len(journey.route), 'hop')}, {journey.replaced} replaced{_versions(journey.versions)}"


def _versions(versions: Sequence[int]) -> str:
    """Which versions of a model in training have answered."""
    if len(versions) < 2:
        return f", version {versions[0]}" if versions else ""
    return f", versions {', then '.join(map(str, versions))}"


def versions_of(journey: Any) -> tuple[int, ...]:
    """Of a session, or of none."""
    return () if journey is None else tuple(journey.versions)


def say_followed(before: Sequence[int], journey: Any) -> None:
    """Say if a session has gone on to another version. before: its versions ahead of the answer."""
    after = versions_of(journey)
    new = after[len(before) :] if before else after[1:]
    if new:
        remark(_followed(before[-1] if before else after[0], new))


def _followed(old: int, new: Sequence[int]) -> str:
    return (
        f"version {old} is served no more: the text was computed again with version {new[-1]}, and the answer goes on with that"
    )
