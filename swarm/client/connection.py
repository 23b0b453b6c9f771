"""The real backend: sessions of `swarm.inference` behind a synchronous interface.

They run on the background loop.

`connect` finds a model's blocks: resolve and open the checkpoint, join the swarm, check that the same weights are served there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.errors import BadRequestError, shown
from protocols.hosted import Hosted
from protocols.ids import ModelId, Span
from protocols.tensors import COMPUTE_DTYPES
from protocols.weights import Manifest
from protocols.weights_id import Weights
from swarm import places, waiting
from swarm.access_lists import Lists, of_argument
from swarm.checkpoints.digest import build_manifest
from swarm.checkpoints.resolve import resolve
from swarm.client.fetching import ends_from_peers
from swarm.client.loop import BackgroundLoop, background_loop, in_forked_child
from swarm.client.peers import PeerPool, SharedPeer
from swarm.client.remote_pass import PassWays
from swarm.client.swarm_backend import SwarmBackend
from swarm.inference.client.session import Session, SessionConfig
from swarm.meeting import keyring, known_peers
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import ANYBODY, Entry, enter
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.places import is_place, name_in_swarm
from swarm.routing.regard import regard_of
from swarm.routing.router import Router
from swarm.rpc import forked
from swarm.streams.links import Links
from swarm.suggestion import NodeCommand
from swarm.thin import model_lookup
from swarm.waiting import Waits
from swarm.weights import served
from swarm.weights.lookup import look_elsewhere, once_readable, open_cache
from swarm.weights.naming import Naming

if TYPE_CHECKING:
    from swarm.client.peers import AnyPeer

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in COMPUTE_DTYPES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `from_pretrained` was told; see there."""

    peers: tuple[str, ...] = ()
    swarm: str = "public"
    dtype: str | torch.dtype = "auto"
    route_timeout_s: float = ROUTE_TIMEOUT_S
    priority: int = 0
    model_name: str | None = None
    cache_dir: str | Path | None = None
    find: FindConfig | None = None
    """Which peers to ask beside `peers`; None = if there are none, the known peers and neighbours."""

    entry: Entry = ANYBODY
    """The key of a private swarm, whom we talk to, and who we are."""

    accept_new_weights: bool = False
    """Take the weights that a name means now, even if it meant others here before."""

    follow: bool = False
    """Of a model in training: a session whose version is served no more goes on with the newest one."""

    waits: Waits = field(default_factory=Waits)
    """Where is said what is being waited for, as long as the model lives."""

    def __post_init__(self) -> None:
        if self.dtype != "auto" and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise BadRequestError(f"dtype must be auto, {', '.join(DTYPES)}, got {self.dtype!r}")
        if not (isinstance(self.swarm, str) and 1 <= len(self.swarm) <= 64 and self.swarm.isprintable()):
            raise BadRequestError(f"swarm is a name of 1 to 64 printable letters, got {shown(self.swarm)}")
        if not (isinstance(self.route_timeout_s, int | float) and self.route_timeout_s >= 0):
            raise BadRequestError(f"patience_s is a number of seconds and not negative, got {shown(self.route_timeout_s)}")
        if not (isinstance(self.priority, int) and -100 <= self.priority <= 0):
            raise BadRequestError(f"priority is an integer from -100 to 0, got {shown(self.priority)}")
        if not isinstance(self.accept_new_weights, bool):
            raise BadRequestError(f"accept_new_weights is True or False, got {shown(self.accept_new_weights)}")

    @property
    def data_dir(self) -> Path:
        """Holds `digests/` (what was hashed) and `weights/` (what was fetched)."""
        return Path(self.cache_dir) if self.cache_dir else places.data_dir()  # nodes keep their files there, too

    def naming(self, peer: AnyPeer) -> Naming:
        """How names are understood, by way of this peer."""
        return Naming.of(peer.ping, self.data_dir, keyring.known_as(self.swarm, self.entry.key), self.accept_new_weights)

    def hosting(self, directory: str = "") -> NodeCommand:
        """What a message tells people to type who could host what is missing. directory: where the model's files are here."""
        peer = next(iter(self.peers), "")
        data_dir = Path(self.cache_dir) if self.cache_dir else None
        return NodeCommand(swarm=self.swarm, peer=peer, data_dir=data_dir, directory=directory)

    def dtype_name(self, blocks: Iterable[Hosted], num_blocks: int) -> str:
        """The route's compute dtype, if these blocks are served."""
        return served.best_dtype(blocks, num_blocks, DTYPES) if self.dtype == "auto" else str(self.dtype).removeprefix("torch.")


def entered(settings: Settings, join: str | None, lists: Mapping[str, object], identity: str | Path | None) -> Settings:
    """The settings with what `join`, the lists (allow, deny, trust) and `identity` of `from_pretrained` come to."""
    into = enter(
        swarm=settings.swarm, peers=settings.peers, data_dir=settings.data_dir, join=join,
        lists=Lists(**{name: of_argument(name, value) for name, value in lists.items()}),
        identity=None if identity is None else places.expanded(identity), warn=log.warning,
    )  # fmt: skip
    return replace(settings, swarm=into.swarm, peers=into.peers, entry=into.entry)


_pools: dict[BackgroundLoop, PeerPool] = {}

in_forked_child(forked.load_again)
in_forked_child(lambda: torch.set_num_threads(1))  # as in torch's own workers: OpenMP's threads do not survive a fork either


def _peer_pool() -> tuple[BackgroundLoop, PeerPool]:
    """This process's loop and the peers on it."""
    loop = background_loop()
    return loop, _pools.get(loop) or _pools.setdefault(loop, PeerPool(loop))  # of two threads that make one, both take the first


def connect(model: str | Path, settings: Settings) -> tuple[Checkpoint, SwarmBackend]:
    """Everything of `from_pretrained` but embedding and head; errors as documented there."""
    loop, pool = _peer_pool()
    found = "" if is_place(str(model)) else loop.run(_connect_by_name(loop, pool, str(model), settings))
    if not isinstance(found, str):
        return found
    with settings.waits.on(waiting.loading(str(model))):
        checkpoint = open_checkpoint(resolve(str(model), served=found, data_dir=settings.data_dir, waits=settings.waits))
    with settings.waits.reporting() as slot:  # what was hashed before says nothing
        hashing = waiting.hashing(checkpoint.name)
        manifest = build_manifest(
            checkpoint, settings.data_dir / "digests", lambda done, total: slot.set(hashing.at(done, total))
        )
    identity = ModelId(settings.model_name or name_in_swarm(str(model)), manifest.digest)
    return checkpoint, loop.run(
        _join(loop, pool, identity, manifest, checkpoint.num_blocks, settings, settings.hosting(str(model)))
    )


async def _connect_by_name(
    loop: BackgroundLoop, pool: PeerPool, name: str, settings: Settings
) -> tuple[Checkpoint, SwarmBackend] | str:
    """The same for a name that the swarm serves: what is needed here comes from peers. If it serves no such name: what to add to an error
    about that."""
    shared = await _meet(pool, settings)
    try:
        peer = shared.started.result()
        timeout_s = settings.route_timeout_s
        found = await ends_from_peers(peer, name, settings.data_dir / "weights", settings.naming(peer), settings.waits, timeout_s)
        if found is None:
            return await once_readable(lambda: look_elsewhere(peer.directory, name, peer.clocks.fault), timeout_s)
        cache, checkpoint = found
        try:
            backend = await _join(loop, pool, cache.model, cache.manifest, checkpoint.num_blocks, settings, settings.hosting())
        except BaseException:
            cache.close()
            raise
        backend.at_close(cache.close)  # held until then: a tokenizer is read at its first use
        return checkpoint, backend
    finally:
        pool.release(shared)


def connect_thin(model: str | Path, settings: Settings) -> tuple[Checkpoint, SwarmBackend]:
    """The same with nothing here: the model is whatever the swarm serves by this name; of its files only the small ones are fetched."""
    loop, pool = _peer_pool()
    return loop.run(_join_thin(loop, pool, settings.model_name or name_in_swarm(str(model)), settings))


async def _join_thin(loop: BackgroundLoop, pool: PeerPool, name: str, settings: Settings) -> tuple[Checkpoint, SwarmBackend]:
    shared = await _meet(pool, settings, thin=True)
    with contextlib.ExitStack() as held:
        held.callback(pool.release, shared)
        peer = shared.started.result()
        with settings.waits.reporting() as slot, peer.clocks.explaining():
            slot.set(waiting.JOINING)
            naming = settings.naming(peer)
            found = await model_lookup.wait_for(peer.directory, name, naming, settings.route_timeout_s, settings.hosting(), slot)
        with settings.waits.on(waiting.fetching(f"config and tokenizer of {name}")):
            cache = await open_cache(settings.data_dir / "weights", found, peer.pool, naming)
        held.callback(cache.close)
        checkpoint = await asyncio.to_thread(open_checkpoint, cache.directory)
        dtype = settings.dtype_name(model_lookup.blocks_of(found), checkpoint.num_blocks)
        config = SessionConfig(
            route_timeout_s=settings.route_timeout_s,
            priority=settings.priority,
            dtype=dtype,
            hidden_size=checkpoint.hidden_size,
            vocab_size=checkpoint.vocab_size,
            follow=settings.follow,
        )
        sessions, ways, router = _ways(
            peer, found.model, checkpoint.num_blocks, config, settings.hosting(), settings.waits, cache.manifest.run is not None
        )
        held.callback(router.close)
        release = held.pop_all().close  # the files' folder is held as long as the model: a tokenizer is read at its first use
    return checkpoint, SwarmBackend(loop, release, sessions, found.model, DTYPES[dtype], ways)


async def _join(
    loop: BackgroundLoop,
    pool: PeerPool,
    model: ModelId,
    manifest: Manifest,
    num_blocks: int,
    settings: Settings,
    hosting: NodeCommand,
) -> SwarmBackend:
    """On the loop: a shared peer, the check that our weights are served, and what makes sessions."""
    shared = await _meet(pool, settings)
    try:
        peer = shared.started.result()
        with settings.waits.reporting() as slot, peer.clocks.explaining():
            slot.set(waiting.JOINING)
            blocks = await served.wait_until_served(
                peer.directory, peer.pool, model, manifest, settings.route_timeout_s, hosting, slot
            )
        name = settings.dtype_name(blocks, num_blocks)
        config = SessionConfig(route_timeout_s=settings.route_timeout_s, priority=settings.priority, dtype=name)
        sessions, ways, router = _ways(peer, model, num_blocks, config, hosting, settings.waits)
    except BaseException:
        pool.release(shared)
        raise
    backend = SwarmBackend(loop, lambda: pool.release(shared), sessions, model, DTYPES[name], ways)
    backend.at_close(router.close)
    return backend


async def _meet(pool: PeerPool, settings: Settings, thin: bool = False) -> SharedPeer:
    with settings.waits.on(waiting.JOINING):
        return await pool.acquire(settings.swarm, settings.peers, _find(settings), thin, settings.entry)


def _ways(
    peer: AnyPeer,
    model: ModelId,
    num_blocks: int,
    config: SessionConfig,
    hosting: NodeCommand,
    waits: Waits,
    is_in_training: bool = False,
) -> tuple[Callable[[Span | None], Session], PassWays, Router]:
    """What makes sessions over some blocks, what differentiable passes need, and the router of both. config: its dtype is set."""
    weights, regard = Weights(model), regard_of(peer)
    router = Router(peer.directory, peer.ping, weights, num_blocks, hosting, regard, takes_newest=is_in_training)
    links = Links(peer.pool)
    assert config.dtype is not None
    ways = PassWays(
        router=router, pool=peer.pool, identity=peer.identity, dtype=config.dtype, route_timeout_s=config.route_timeout_s, waits=waits
    )  # fmt: skip
    return (lambda blocks: Session(router, links, peer.identity, replace(config, blocks=blocks), waits)), ways, router


def _find(settings: Settings) -> FindConfig:
    if settings.find is not None:
        return settings.find
    if settings.peers:
        return FindConfig()
    known_as = keyring.known_as(settings.swarm, settings.entry.key)
    kept = known_peers.file_of(settings.data_dir, known_as)
    return FindConfig(known_peers=kept, here=(settings.data_dir, known_as), lan=True)
