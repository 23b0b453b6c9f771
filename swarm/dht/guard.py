"""Decides which peers may speak with our DHT.

Every request and answer passes here, between hivemind's protocol and p2pd.

p2pd has no private networks of libp2p (no flag, and the code is not in the binary), so an outsider can connect to it. Here ping, store and
find are refused before hivemind sees them, and p2pd's own DHT, which would tell outsiders every member's address, is off.
p2pd proves both PeerIDs of a connection, so a proof of the swarm's key over the two of them cannot be used by a third: it need not
cover the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.utils.auth import AuthRole

from protocols.errors import NotAllowedError, PrivateSwarmError, SwarmError
from protocols.ids import PeerId, short_peer
from swarm.access import Gate
from swarm.dht.whereabouts import Whereabouts
from swarm.private import ASK_FOR_INVITATION, OTHER_KEY

_MAX_REFUSALS = 64
_OFF = "off"
"""A mode of p2pd's own DHT that hivemind lacks: none of its flags."""
_REQUEST, _ANSWER = "dht-request", "dht-answer"


class Guard:
    """One peer's guard."""

    def __init__(self, me: PeerId, gate: Gate, places: Callable[[], Sequence[str]] = tuple) -> None:
        """places: where we listen, told to the members of a private swarm."""
        self._me, self._gate, self._places = me, gate, places
        self._refusals: dict[PeerId, SwarmError] = {}
        self._whereabouts = Whereabouts()
        self.connect: Callable[[PeerId, Sequence[str]], Awaitable[None]] | None = None
        """Lets p2pd connect to a peer at one of some addresses."""

    def refusal(self, peer: PeerId) -> SwarmError | None:
        """Why the last call to `peer` was refused, here or there; asked once."""
        return self._refusals.pop(peer, None)

    def prove(self, purpose: str, peer: PeerId) -> bytes:
        """For `peer`, that we are in the swarm; nothing in a public one."""
        return self._gate.key.proof(purpose, self._me.encode(), peer.encode()) if self._gate.key else b""

    def check(self, purpose: str, peer: PeerId, proof: bytes) -> None:
        """PrivateSwarmError unless `peer` is in the same swarm as we are."""
        if self._gate.key is None:
            if proof:
                raise PrivateSwarmError("you speak as a member of a private swarm, and this peer is in a public one")
        elif not self._gate.key.is_proof(proof, purpose, peer.encode(), self._me.encode()):
            raise PrivateSwarmError(OTHER_KEY if proof else ASK_FOR_INVITATION)

    async def call(self, method: Callable[..., Any], peer: PeerId, request: Any, timeout_s: float | None) -> Any:
        """Ask `peer`, with our proof, and check its."""
        try:
            self._gate.check_dialled(peer)
        except NotAllowedError as error:
            self._note(peer, error)
            raise
        request.auth.signature = self.prove(_REQUEST, peer)
        if self._gate.key:
            request.auth.client_access_token.public_key = self._whereabouts.tell(self._me, self._places())
        try:
            response = await self._reached(method, peer, request, timeout_s)
        except P2PHandlerError as error:
            if refused := _refused(str(error), peer, is_public=self._gate.key is None):
                self._note(peer, refused)
            raise
        try:
            self.check(_ANSWER, peer, response.auth.signature)
        except PrivateSwarmError:
            mine = self._gate.key is not None
            why = "it does not prove the key of your private swarm" if mine else "it is in a private swarm, and you are not"
            self._note(peer, PrivateSwarmError(f"peer {short_peer(peer)} is not in your swarm: {why}; check --peer and --join"))
            raise
        if self._gate.key:
            self._whereabouts.learn(peer, response.auth.service_access_token.public_key)
        return response

    async def _reached(self, method: Callable[..., Any], peer: PeerId, request: Any, timeout_s: float | None) -> Any:
        """Call; if p2pd does not know where the peer is, and we do, tell it and call again."""
        try:
            return await method(request, timeout=timeout_s)
        except P2PDaemonError:
            if not self._whereabouts[peer] or self.connect is None:
                raise
        async with asyncio.timeout(timeout_s):
            await self.connect(peer, self._whereabouts[peer])
        return await method(request, timeout=timeout_s)

    async def serve(self, method: Callable[..., Any], request: Any, context: Any) -> Any:
        """Answer a caller that is in our swarm and that our lists take."""
        peer = PeerId(context.remote_id.to_base58())
        self.check(_REQUEST, peer, request.auth.signature)
        self._gate.check_caller(peer)
        if self._gate.key:
            self._whereabouts.learn(peer, request.auth.client_access_token.public_key)
        response = await method(request, context)
        response.auth.signature = self.prove(_ANSWER, peer)
        if self._gate.key:
            told = self._whereabouts.tell(self._me, self._places(), _named(response))
            response.auth.service_access_token.public_key = told
        return response

    def _note(self, peer: PeerId, error: SwarmError) -> None:
        if len(self._refusals) >= _MAX_REFUSALS:
            self._refusals.clear()
        self._refusals[peer] = error


def _named(response: Any) -> list[PeerId]:
    """Peers that an answer of `rpc_find` names; none for the others."""
    results = getattr(response, "results", ())
    names = (PeerID(raw).to_base58() for result in results for raw in result.nearest_peer_ids)
    return [PeerId(name) for name in dict.fromkeys(names)]


def _refused(text: str, peer: PeerId, *, is_public: bool) -> SwarmError | None:
    """What a peer's error says (is_public: our swarm), if it is a refusal of a guard; in our words, since it is only the peer's claim."""
    if text.startswith(f"{PrivateSwarmError.__name__}("):
        if is_public:
            return PrivateSwarmError(f"peer {short_peer(peer)}: {ASK_FOR_INVITATION}")
        words = (
            OTHER_KEY
            if OTHER_KEY[:60] in text
            else "it is in a public swarm, and you are in a private one; check --peer and --join"
        )
        return PrivateSwarmError(f"peer {short_peer(peer)}: {words}")
    if text.startswith(f"{NotAllowedError.__name__}("):
        return NotAllowedError(f"peer {short_peer(peer)} does not take us: its user keeps lists of peers (--allow, --deny)")
    return None


class Guarded:
    """In place of hivemind's AuthRPCWrapper: `rpc_*` of a protocol (what we answer) or of a stub (what we ask), through a guard."""

    def __init__(self, inner: Any, role: AuthRole, guard: Guard) -> None:
        self._inner, self._role, self._guard = inner, role, guard

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method, guard = getattr(self._inner, name), self._guard
        if self._role is AuthRole.SERVICER:
            return lambda request, context: guard.serve(method, request, context)
        peer = PeerId(self._inner._peer.to_base58())
        return lambda request, timeout=None: guard.call(method, peer, request, timeout)


def daemon_options(gate: Gate) -> dict[str, Any]:
    """Further options of p2pd: in a private swarm it offers nothing that outsiders could use."""
    if gate.key is None:
        return {}
    P2P.DHT_MODE_MAPPING[_OFF] = {}
    return {"dht_mode": _OFF}
