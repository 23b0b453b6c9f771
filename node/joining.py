"""How a node or a trainer joins its swarm."""

from __future__ import annotations

import contextlib

from node.config import NodeConfig
from node.events import Event, OnEvent
from protocols.errors import PeerUnreachableError
from protocols.records import PeerRecord
from swarm.meeting import keyring, known_peers
from swarm.meeting.bootstrap import FindConfig
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer, software

JOIN_WAIT_S = 10.0
"""How long a node waits for the first answer of the peers it was given, before it serves on its own and keeps trying."""


async def meet(config: NodeConfig, peer: Peer, on_event: OnEvent) -> None:
    """Say who we are, and wait a moment for the given peers: what they know decides our place."""
    on_event(Event("peer", peer.peer_id))
    for address in peer.multiaddrs:
        on_event(Event("multiaddr", address))
    if config.entry.key:
        on_event(Event("private", f"swarm `{config.swarm}` (key {config.entry.key.label})"))
    with contextlib.suppress(PeerUnreachableError):  # its log says so, and it keeps trying
        await peer.joined(JOIN_WAIT_S)
    if peer.refusal:
        raise peer.refusal
    if not config.peers and not peer.num_neighbours:
        on_event(Event("alone", peer.alone))


def record_of(config: NodeConfig, peer: Peer) -> PeerRecord:
    """What this process tells of itself, before what it hosts and does."""
    return PeerRecord(
        peer=peer.peer_id,
        name=config.name,
        software=software(),
        addresses=tuple(peer.addresses),
        certificate=peer.certificate,
        p2p_addresses=tuple(peer.multiaddrs),
        upload_bytes_s=config.upload_bytes_s,
    )


def peer_config(config: NodeConfig, on_event: OnEvent) -> PeerConfig:
    """How the peer of a command takes part in its swarm."""

    def tell(is_joined: bool, text: str) -> None:
        if is_joined:  # while no peer answers, the peer's log says so
            on_event(Event("joined", text.removeprefix("joined: ")))

    return PeerConfig(
        swarm=config.swarm,
        bootstrap=config.peers,
        find=FindConfig(
            known_peers=known_peers.file_of(config.data_dir, keyring.known_as(config.swarm, config.entry.key)),
            lan=config.lan,
            on_unnamed=lambda text: on_event(Event("warning", text)),
            may_join=config.may_join,
        ),
        listen=config.listen,
        announce=config.announce,
        data_dir=config.data_dir,
        identity_path=config.identity,
        name=config.name,
        entry=config.entry,
        on_join=tell,
    )
