"""Every setting of `swarm node`, checked once.

Addresses are parsed here too, since a typing error must be refused before anything is loaded or joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from node.train_hours import TrainHours
from protocols.errors import ConfigError
from protocols.ids import Span
from protocols.records import MAX_MODELS
from protocols.tensors import COMPUTE_DTYPES
from swarm import suggestion
from swarm.meeting.entering import ANYBODY, Entry

if TYPE_CHECKING:
    from node.training.spec.run_file import RunFile

DTYPES = ("auto", *COMPUTE_DTYPES)
DEFAULT_SWARM = suggestion.DEFAULT_SWARM

Address = tuple[str, int]
"""(host, port); port 0 = any free one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """One model that a node serves, of several."""

    model: str
    """As `NodeConfig.model`."""

    blocks: Span | None = None
    """As `NodeConfig.blocks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything that `swarm node` needs to know before it starts."""

    model: str
    """A directory, a name that the swarm serves (`name@digest` and the beginning of a digest too), or a Hub name."""

    run: RunFile | str | None = None
    """Take part in this training run: as its file says, or by its name in the swarm. `model` is its name then."""

    train_hours: TrainHours | None = None
    """When it takes micro-batches of the run; None = always."""

    train_share: float | None = None
    """Least share of the device's time for training while prompts wait, in [0, 1]; None = the default of `DeviceConfig`."""

    keep: Path | None = None
    """Keep checkpoints of the run in this folder, under its name; None = keep none."""

    more: tuple[Serve, ...] = ()
    """Further models that this node serves beside `model`."""

    model_name: str | None = None
    """The model's name in the swarm; None = the Hub name, or the directory's last part."""

    blocks: Span | None = None
    """The blocks to host; None = choose what the swarm needs most."""

    num_blocks: int | None = None
    """At most so many blocks, if `blocks` is not given; None = as many as fit."""

    ends: bool | None = None
    """Host embedding, norm and head beside an outer span; None = if there is memory."""

    stays: bool = False
    """Whether the node keeps its first blocks, even if others would help the swarm more."""

    peers: tuple[str, ...] = ()
    """Multiaddrs of peers to join by; none = the last known ones and neighbours, or the first of a new swarm."""

    lan: bool = True
    """Look for neighbours on the local network if no peer is named, and tell them of us (needs the extra `lan`)."""
    may_join: Callable[[str], bool] | None = None
    """Asks the user whether neighbours may be joined, given the words that say whom; None = they may."""

    listen: Address = ("0.0.0.0", 0)
    """Where to listen: p2p at the port, gRPC at the next one."""

    announce: Address | None = None
    """What others dial instead of `listen`, for a forwarded port."""

    metrics: Address | None = None
    """Where Prometheus reads what is counted; None = nothing is."""

    swarm: str = DEFAULT_SWARM
    """The swarm's name; peers of other names never meet."""

    entry: Entry = ANYBODY
    """The key of a private swarm, and the lists of whom this node talks to."""

    is_test: bool = False
    """Whether this is a node of a test swarm, which an operator may kill."""

    upload_mbit: float = 0.0
    """What other nodes may fetch of our weights at most, in megabits a second; 0 = no cap."""

    disk_gb: float = 0.0
    """What all fetched weights in `data_dir` may take of the disk at most, in gigabytes; 0 = what is free."""

    device: str = "auto"
    """A torch device, or auto."""

    dtype: str = "auto"
    """One of DTYPES; auto = what the swarm serves already, else the faster one of float32 and the stored one."""

    name: str = ""
    """What people call this node."""

    identity: Path | None = None
    """The key file; None = the first one in `data_dir` that no running node holds."""

    is_quiet: bool = False
    """Whether the line of each minute's work is left out."""

    accept_new_weights: bool = False
    """Take the weights that `model` means now, even if this name meant others here before."""

    data_dir: Path
    """Where keys, digests, fetched weights and what names meant are kept."""

    def of_each_model(self) -> tuple[NodeConfig, ...]:
        """A config for each model. A node with several stays where it is: its memory is divided once."""
        if not self.more:
            return (self,)
        return tuple(
            replace(self, model=one.model, blocks=one.blocks, more=(), stays=True)
            for one in (Serve(model=self.model, blocks=self.blocks), *self.more)
        )

    @property
    def upload_bytes_s(self) -> int:
        return int(self.upload_mbit * 125_000)

    @property
    def disk_bytes(self) -> int:
        return int(self.disk_gb * 1e9)

    def __post_init__(self) -> None:
        if self.num_blocks is not None and {self.blocks, *(one.blocks for one in self.more)} != {None}:
            raise ConfigError("--blocks says which and --num-blocks says how many; got both, give one")
        if len(self.more) >= MAX_MODELS:
            raise ConfigError(f"a node serves at most {MAX_MODELS} models, got {1 + len(self.more)}")
        if self.more and self.model_name is not None:
            raise ConfigError(f"--model-name names one model, got it with {1 + len(self.more)}; leave it out")
        if len({self.model, *(one.model for one in self.more)}) <= len(self.more):
            raise ConfigError("a node serves each model once, got one twice: leave one out")
        if self.run is None and (self.train_hours is not None or self.train_share is not None):
            raise ConfigError("--train-hours and --train-share are of a node that trains: give --run, too, or leave them out")
        if self.train_share is not None and not 0 <= self.train_share <= 1:
            raise ConfigError(f"--train-share is a part of the time, from 0 to 1, got {self.train_share:g}")
        if self.keep is not None and self.run is None:
            raise ConfigError("--keep is for a node that takes part in a run: give --run, or leave it out")
        if self.run is not None and self.more:
            raise ConfigError("a node that trains takes part in one run and serves nothing else: leave the other models out")
        if self.run is not None and self.ends is False:
            raise ConfigError("in a run, embedding and head are trained beside the first and the last block: leave --no-ends out")
        if self.run is not None and self.dtype not in ("auto", "float32"):
            raise ConfigError(f"a run is trained and served in float32, got --dtype {self.dtype}: leave it out")
        if self.num_blocks is not None and self.num_blocks < 1:
            raise ConfigError(f"--num-blocks is at least 1, got {self.num_blocks}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.upload_mbit and not 0.6 <= self.upload_mbit <= 1e6:
            raise ConfigError(f"--upload-mbit is 0 (no cap) or from 0.6 to 1000000, got {self.upload_mbit:g}")
        if not 0 <= self.disk_gb <= 1e6:
            raise ConfigError(f"--disk-gb is 0 (what is free) or up to 1000000, got {self.disk_gb:g}")
        if len(self.name) > 64 or not self.name.isprintable():
            raise ConfigError(f"--name is at most 64 printable letters, got {self.name[:80]!r}")


def parse_address(text: str, flag: str) -> Address:
    """Read `HOST:PORT` (`[::1]:0` for IPv6); ConfigError names the flag."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text)
    if not match or int(match[3]) > 65_535:
        raise ConfigError(f"{flag} is written HOST:PORT, as in 127.0.0.1:0 or [::1]:4000, got {text[:80]!r}")
    return match[1] or match[2], int(match[3])


def parse_port(text: str, flag: str) -> Address:
    """Read `PORT`, which is on loopback, or `HOST:PORT`; ConfigError names the flag."""
    return parse_address(f"127.0.0.1:{text}" if text.isdecimal() else text, flag)
