"""The flags of each command as one value.

A field is a flag, and its name is typer's parameter. `--help` shows a class's own flags before those that it inherits.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.flags import options
from node.config import DEFAULT_SWARM
from protocols.defaults import ROUTE_TIMEOUT_S
from swarm.access_lists import Lists

if TYPE_CHECKING:
    from node.cli.flags.asking import ClientSettings, Sampling
    from swarm.meeting.entering import Entered


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeetingOptions:
    """Which swarm, by which peers, and as whom."""

    peer: options.AskedPeers = dataclasses.field(default_factory=list)
    lan: options.Lan = True
    swarm: options.Swarm = DEFAULT_SWARM
    join: options.Join = dataclasses.field(default=None, repr=False)
    allow: options.Allow = None
    deny: options.Deny = None
    trust: options.Trust = None
    identity: options.ClientIdentity = None
    data_dir: options.DataDir = None

    def enter(self) -> Entered:
        """The same, checked; what a person should know is said on stderr."""
        from node.cli.terminal.console import remark
        from swarm import places
        from swarm.meeting.entering import enter

        return enter(
            swarm=self.swarm, peers=self.peer, data_dir=self.data_dir or places.data_dir(), join=self.join, lists=self.lists(),
            identity=self.identity, warn=remark,
        )  # fmt: skip

    def lists(self) -> Lists:
        """Of whom this peer talks to."""
        return Lists(allow=self.allow, deny=self.deny, trust=self.trust)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions(MeetingOptions):
    """Of a machine that is checked: as whom it would enter a swarm, and where it would listen."""

    listen: options.Listen = "0.0.0.0:0"
    announce: options.Announce = None
    device: options.Device = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions(MeetingOptions):
    """Of a machine that is measured."""

    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    patience: options.Patience = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorOptions(MeetingOptions):
    """Of an operator: whose key it is."""

    operator_key: options.OperatorKey = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerOptions(MeetingOptions):
    """Of a peer that others call: a node or a trainer."""

    peer: options.Peers = dataclasses.field(default_factory=list)
    listen: options.Listen = "0.0.0.0:0"
    announce: options.Announce = None
    identity: options.NodeIdentity = None
    accept_new_weights: options.AcceptNewWeights = False
    metrics: options.MetricsAt = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions(PeerOptions):
    """Of a peer that hosts blocks."""

    blocks: Annotated[
        str | None, typer.Option("--blocks", metavar="A:B", help="Host blocks A to B - 1; default: what is needed most.")
    ] = None
    num_blocks: Annotated[
        int | None, typer.Option("--num-blocks", metavar="N", help="Host at most N blocks; default: as many as fit.")
    ] = None
    ends: Annotated[
        bool | None,
        typer.Option(
            "--ends/--no-ends",
            help="Host embedding and head beside the first or last blocks, for thin clients; default: if there is memory.",
            show_default=False,
        ),
    ] = None
    stay: Annotated[bool, typer.Option("--stay", help="Keep the first blocks, even if the swarm comes to need others more.")] = (
        False
    )
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What people call this node.")] = ""
    model_name: options.ModelName = None
    upload_mbit: Annotated[
        float,
        typer.Option(
            "--upload-mbit",
            metavar="MBIT",
            help="Give weights and training state at no more than this many Mbit/s; 0 = no cap.",
        ),
    ] = 0.0
    disk_gb: Annotated[
        float,
        typer.Option(
            "--disk-gb", metavar="GB", help="Keep no more than this many GB of fetched weights on disk; 0 = what is free."
        ),
    ] = 0.0
    operators: Annotated[
        Path | None,
        typer.Option(
            "--operators",
            metavar="FILE",
            help="Obey the peers whose PeerIDs are in FILE, one a line: they may drain, pause and ban here. Read again when it changes; "
            "default: none.",
            show_default=False,
        ),
    ] = None
    test_swarm: Annotated[
        bool, typer.Option("--test-swarm", help="Let operators kill this node, too, as kill -9 does: to try what a death costs.")
    ] = False
    otlp: options.Otlp = None
    quiet: Annotated[bool, typer.Option("--quiet", help="Leave out the line of work that is printed once a minute.")] = False

    def lists(self) -> Lists:
        """With the operators of this node."""
        return dataclasses.replace(super().lists(), operators=self.operators)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosting(BlockOptions):
    """Of a node."""

    dashboard: options.Dashboard = None
    operator_key: options.OperatorKey = None
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Take part in a training run, given by its file (RUN.toml; any field as an option, too: --training.steps 100) or its name "
            "in the swarm: train blocks of its model, and serve what they become.",
            show_default=False,
        ),
    ] = None
    train_hours: Annotated[
        str | None,
        typer.Option(
            "--train-hours",
            metavar="FROM-TO",
            help="Train only in these hours of local time, as 23-7 or 22:30-6:15; outside them prompts are answered. Default: always.",
        ),
    ] = None
    train_share: Annotated[
        float | None,
        typer.Option(
            "--train-share",
            metavar="SHARE",
            help="Give training at least this part of the device's time while prompts wait, 0 to 1; default: 0.1.",
        ),
    ] = None
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="With --run: keep checkpoints of the run in DIR/NAME, and give them to nodes that have lost their state.",
            show_default=False,
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Of a gateway's HTTP server and its page."""

    port: options.Port = 8000
    host: options.Host = "127.0.0.1"
    max_requests: options.MaxRequests = 64
    max_seconds: options.MaxSeconds = 3600.0
    allow_origin: options.AllowOrigin = dataclasses.field(default_factory=list)
    runs_dir: options.RunsDir = None
    operator_key: options.OperatorKey = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpOptions(HttpOptions, BlockOptions):
    """Of a node with a gateway."""

    def hosting(self) -> Hosting:
        """The same, as flags of a node."""
        return Hosting(**{one.name: getattr(self, one.name) for one in dataclasses.fields(BlockOptions)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(PeerOptions):
    """Of a trainer."""

    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Train the whole model in this process, without a swarm: to try a run file, and to compare."
        ),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the file means (parameters, memory per unit, bytes per step), and exit.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object instead, for programs.")] = False
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Metrics and checkpoints go to DIR/NAME, NAME being the run's.")
    ] = Path("runs")
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What people call this trainer.")] = ""

    def hosting(self) -> Hosting:
        """The same, as flags of a node: how this peer meets others."""
        return Hosting(name=self.name, **{one.name: getattr(self, one.name) for one in dataclasses.fields(PeerOptions)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(MeetingOptions):
    """Of a client: which model, and how it is asked."""

    model_name: options.ModelName = None
    device: options.Device = "cpu"
    dtype: options.Dtype = "auto"
    patience: options.Patience = ROUTE_TIMEOUT_S
    accept_new_weights: options.AcceptNewWeights = False

    def asking(self, model: str) -> ClientSettings:
        """Which model and where its nodes are, checked."""
        from node.cli.flags.asking import ClientSettings

        into = self.enter()
        return ClientSettings(
            model=model, peers=into.peers, lan=self.lan, swarm=into.swarm, model_name=self.model_name, device=self.device,
            dtype=self.dtype, route_timeout_s=self.patience, priority=0, data_dir=self.data_dir, entry=into.entry,
            accept_new_weights=self.accept_new_weights,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientOptions(EvaluationOptions):
    """Of a client that generates."""

    max_new_tokens: options.MaxNewTokens
    temperature: options.Temperature = None
    top_p: options.TopP = None
    top_k: options.TopK = None
    seed: options.Seed = None
    priority: options.Priority = 0
    stats: options.Stats = False
    speculate: options.Speculate = None
    draft: options.Draft = None
    thin: options.Thin = False
    follow: options.Follow = False
    greedy: options.Greedy = False

    def asking(self, model: str) -> ClientSettings:
        """Which model, where its nodes are, and how they are asked, checked."""
        return dataclasses.replace(super().asking(model), priority=self.priority, follow=self.follow)

    def sampling(self, as_model_says: bool) -> Sampling:
        """How tokens are picked, checked. as_model_says: drawn if the model's own settings say so."""
        from node.cli.flags.asking import Sampling
        from node.cli.flags.speculation import Speculation

        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed,
            speculation=Speculation(tokens=self.speculate, draft=self.draft), is_greedy=self.greedy, as_model_says=as_model_says,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThinOptions(MeetingOptions):
    """Of thin clients for models of the swarm."""

    dtype: options.Dtype = "auto"
    patience: options.Patience = 30.0
    priority: options.Priority = 0
    follow: options.Follow = False
    accept_new_weights: options.AcceptNewWeights = False
    otlp: options.Otlp = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving(HttpOptions, ThinOptions):
    """Of a gateway."""


def with_flags(name: str, kind: type[Any], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command's function whose parameter `name` stands for all flags of the dataclass `kind`. defaults: this command's own, by field."""

    def unfold(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        shared = _parameters(kind)
        usual = {field.name: field.default_factory() for field in dataclasses.fields(kind) if callable(field.default_factory)}
        shared = [one.replace(default=(usual | defaults).get(one.name, one.default)) for one in shared]

        def command(**given: Any) -> None:
            flags = kind(**{one.name: given.pop(one.name) for one in shared})
            function(**given, **{name: flags})

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *shared)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return unfold


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """Those of a dataclass, its own before those that it inherits."""
    known = inspect.signature(kind, eval_str=True).parameters
    return [known[name] for name in dict.fromkeys(name for one in kind.__mro__ for name in inspect.get_annotations(one))]
