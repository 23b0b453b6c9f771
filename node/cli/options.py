"""The flags that several commands share, each worded once.

All flags of `node`, and of `generate` and `chat`, are one value each.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.config import DEFAULT_SWARM
from protocols.defaults import ROUTE_TIMEOUT_S
from swarm.access_lists import Lists

if TYPE_CHECKING:
    from node.cli.asking import ClientSettings, Sampling

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A directory in Hugging Face form (or with one GGUF file), a name (or NAME@DIGEST) that the swarm serves, or a Hub name.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="A directory in Hugging Face form (or with one GGUF file), a name (or NAME@DIGEST) that the swarm serves, or a Hub name. "
        "Several: one node serves all of them.",
        show_default=False,
    ),
]
Peers = Annotated[
    list[str],
    typer.Option(
        "--peer",
        metavar="MULTIADDR",
        help="Join by this peer: an address that `swarm node` printed. Repeatable; none = the last known ones, then neighbours.",
        show_default=False,
    ),
]
AskedPeers = Annotated[
    list[str],
    typer.Option(
        "--peer",
        metavar="MULTIADDR",
        help="Ask by this peer: an address that `swarm node` printed. Repeatable, and any that answers will do; none = the last "
        "known ones, then neighbours.",
        show_default=False,
    ),
]
Lan = Annotated[
    bool,
    typer.Option(
        "--lan/--no-lan",
        help="Look for neighbours on the local network if no --peer is given (extra `lan`); a node also tells them of itself.",
    ),
]
Swarm = Annotated[str, typer.Option("--swarm", metavar="NAME", help="Which swarm; peers of different names never meet.")]
Join = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="INVITATION",
        help="Enter the swarm of this invitation (`swarm invite` prints one), or of the file that holds it. A word on the command "
        "line can be seen by other users of this machine (`ps`): a file or SWARM_JOIN cannot.",
        show_default=False,
    ),
]
Allow = Annotated[
    Path | None,
    typer.Option(
        "--allow",
        metavar="FILE",
        help="Only the peers whose PeerIDs are in FILE, one a line: they may call, are called and believed.",
    ),
]
Deny = Annotated[
    Path | None, typer.Option("--deny", metavar="FILE", help="Never the peers in FILE; read again when it changes, as all three.")
]
Trust = Annotated[
    Path | None,
    typer.Option("--trust", metavar="FILE", help="The peers in FILE are tried first and need not prove themselves first."),
]
ClientIdentity = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="Be the same peer each time, for nodes with --allow: a key file, made if there is none; default: a fresh one each time.",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model-name", metavar="NAME", help="The model's name in the swarm; default: the Hub name, or the directory's last part."
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where to compute: auto, cpu, cuda:0, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Number format: auto, float32, bfloat16, float16.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Keys, digests and fetched weights; default: $XDG_DATA_HOME/murmuration, ~/.local/share/murmuration.",
    ),
]

AcceptNewWeights = Annotated[
    bool,
    typer.Option(
        "--accept-new-weights",
        help="Take the weights that a name means now, even if it meant others here before; NAME@DIGEST does the same for one.",
    ),
]

# --- generate and chat

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Stop after so many tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="Sample; 0 = greedy. Default: greedy, but chat does as the model's settings say."
    ),
]
TopP = Annotated[float | None, typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens that sum to P.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Sample from the K likeliest tokens.")]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Pick the likeliest token, also if the model's own settings say to sample.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]
Patience = Annotated[float, typer.Option("--patience", metavar="S", help="Seconds to wait for nodes that cover the model.")]
Priority = Annotated[
    int,
    typer.Option(
        "--priority", metavar="N", help="0, or down to -100: the lower, the more device time others get if nodes are busy."
    ),
]
Speculate = Annotated[
    int | None,
    typer.Option(
        "--speculate",
        metavar="N",
        help="Guess up to N tokens ahead, from what was said before (or by --draft), and check them in one trip; the text stays the same.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option("--draft", metavar="MODEL", help="Let this small model of the same tokenizer guess, on this machine."),
]
Stats = Annotated[
    bool, typer.Option("--stats", help="Say tokens/s, hops and deaths survived on stderr (always done on a terminal).")
]


Thin = Annotated[
    bool,
    typer.Option(
        "--thin",
        help="Load nothing here: nodes embed and project too, config and tokenizer come from peers. MODEL is its name in the swarm.",
    ),
]

Follow = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Of a model in training: if nodes drop the version that an answer began with, go on with the newest one instead of ending.",
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosting:
    """The flags of a node; a field is a flag, in this order, and its name is typer's parameter."""

    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Take part in a training run, given by its file (RUN.toml) or its name in the swarm: train blocks of its model, and serve "
            "what they become.",
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
    peer: Peers = dataclasses.field(default_factory=list)
    lan: Lan = True
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Listen here: p2p at PORT, gRPC at PORT + 1; port 0 = free ones.")
    ] = "0.0.0.0:0"
    announce: Annotated[
        str | None, typer.Option("--announce", metavar="HOST:PORT", help="What others dial, if a port is forwarded to us.")
    ] = None
    swarm: Swarm = DEFAULT_SWARM
    join: Join = dataclasses.field(default=None, repr=False)
    allow: Allow = None
    deny: Deny = None
    trust: Trust = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What people call this node.")] = ""
    model_name: ModelName = None
    identity: Annotated[
        Path | None,
        typer.Option("--identity", metavar="FILE", help="Key file, made if there is none; default: one in the data directory."),
    ] = None
    data_dir: DataDir = None
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Leave out the line of work that is printed once a minute.")] = False
    accept_new_weights: AcceptNewWeights = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The flags of a trainer; a field is a flag, in this order, and its name is typer's parameter."""

    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Train the whole model in this process, without a swarm: to try a run file, and to compare."
        ),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the file means (parameters, memory per unit, bytes per step), and exit.")
    ] = False
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Metrics and checkpoints go to DIR/NAME, NAME being the run's.")
    ] = Path("runs")
    peer: Peers = dataclasses.field(default_factory=list)
    lan: Lan = True
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Listen here: p2p at PORT, gRPC at PORT + 1; port 0 = free ones.")
    ] = "0.0.0.0:0"
    announce: Annotated[
        str | None, typer.Option("--announce", metavar="HOST:PORT", help="What others dial, if a port is forwarded to us.")
    ] = None
    swarm: Swarm = DEFAULT_SWARM
    join: Join = dataclasses.field(default=None, repr=False)
    allow: Allow = None
    deny: Deny = None
    trust: Trust = None
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What people call this trainer.")] = ""
    identity: Annotated[
        Path | None,
        typer.Option("--identity", metavar="FILE", help="Key file, made if there is none; default: one in the data directory."),
    ] = None
    data_dir: DataDir = None
    accept_new_weights: AcceptNewWeights = False

    def hosting(self) -> Hosting:
        """The same, as flags of a node: how this peer meets others."""
        shared = {field.name for field in dataclasses.fields(Hosting)} & {field.name for field in dataclasses.fields(self)}
        return Hosting(**{name: getattr(self, name) for name in shared})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """The flags of a client; a field is a flag, in this order, and its name is typer's parameter."""

    max_new_tokens: MaxNewTokens
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None
    peer: AskedPeers = dataclasses.field(default_factory=list)
    lan: Lan = True
    swarm: Swarm = DEFAULT_SWARM
    join: Join = dataclasses.field(default=None, repr=False)
    allow: Allow = None
    deny: Deny = None
    trust: Trust = None
    identity: ClientIdentity = None
    model_name: ModelName = None
    device: Device = "cpu"
    dtype: Dtype = "auto"
    patience: Patience = ROUTE_TIMEOUT_S
    priority: Priority = 0
    data_dir: DataDir = None
    stats: Stats = False
    speculate: Speculate = None
    draft: Draft = None
    thin: Thin = False
    follow: Follow = False
    greedy: Greedy = False
    accept_new_weights: AcceptNewWeights = False

    def asking(self, model: str) -> ClientSettings:
        """Which model and where its nodes are, checked."""
        from node.cli.asking import ClientSettings
        from node.cli.console import remark
        from swarm import places
        from swarm.meeting.entering import enter

        into = enter(
            swarm=self.swarm, peers=self.peer, data_dir=self.data_dir or places.data_dir(), join=self.join,
            lists=Lists(allow=self.allow, deny=self.deny, trust=self.trust), identity=self.identity, warn=remark,
        )  # fmt: skip
        return ClientSettings(
            model=model, peers=into.peers, lan=self.lan, swarm=into.swarm, model_name=self.model_name, device=self.device,
            dtype=self.dtype, route_timeout_s=self.patience, priority=self.priority, data_dir=self.data_dir, entry=into.entry,
            accept_new_weights=self.accept_new_weights, follow=self.follow,
        )  # fmt: skip

    def sampling(self, as_model_says: bool) -> Sampling:
        """How tokens are picked, checked. as_model_says: drawn if the model's own settings say so."""
        from node.cli.asking import Sampling
        from node.cli.speculation import Speculation

        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed,
            speculation=Speculation(tokens=self.speculate, draft=self.draft), is_greedy=self.greedy, as_model_says=as_model_says,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The flags of `swarm eval` that say where a model's nodes are; as `ClientOptions`."""

    peer: AskedPeers = dataclasses.field(default_factory=list)
    lan: Lan = True
    swarm: Swarm = DEFAULT_SWARM
    join: Join = dataclasses.field(default=None, repr=False)
    allow: Allow = None
    deny: Deny = None
    trust: Trust = None
    identity: ClientIdentity = None
    model_name: ModelName = None
    device: Device = "cpu"
    dtype: Dtype = "auto"
    patience: Patience = ROUTE_TIMEOUT_S
    data_dir: DataDir = None
    accept_new_weights: AcceptNewWeights = False

    def asking(self, model: str) -> ClientSettings:
        """As `ClientOptions.asking`."""
        return ClientOptions(max_new_tokens=1, **{one.name: getattr(self, one.name) for one in dataclasses.fields(self)}).asking(
            model
        )


def with_flags(name: str, kind: type[Any], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command's function whose parameter `name` stands for all flags of the dataclass `kind`. defaults: this command's own, by field."""

    def unfold(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        shared = list(inspect.signature(kind, eval_str=True).parameters.values())
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
