"""A model of the swarm without checkpoint and torch.

Text in, text out, over sessions of token ids.

async with open_model("tiny", peers=["/ip4/…/p2p/…"], root=folder) as model:
    sequence = model.start()
    async for token in generate(sequence, model.tokenizer.encode("Once"), Chooser(TokenSampling()), model.limits(32)):
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.weights_id import Weights
from swarm import waiting
from swarm.inference.client.session import Session, SessionConfig
from swarm.meeting import keyring
from swarm.meeting.bootstrap import NOBODY_ELSE, FindConfig
from swarm.meeting.entering import ANYBODY, Entry
from swarm.peer.thin_peer import ThinPeer
from swarm.routing.regard import regard_of
from swarm.routing.router import Router
from swarm.streams.links import Links
from swarm.suggestion import NodeCommand
from swarm.tasks import Tasks
from swarm.thin import model_lookup, served_model
from swarm.thin.embedding import embed
from swarm.thin.generation import Limits, TokenSequence
from swarm.thin.prefixes import KEEP_S, MIN_TOKENS, Prefixes
from swarm.thin.served_model import ServedModel
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.waiting import Waits
from swarm.weights.lookup import open_cache
from swarm.weights.naming import Naming

if TYPE_CHECKING:
    from swarm.thin.embedding import Vector


class ThinModel:
    """One model, its tokenizer, and a router that its sessions share."""

    def __init__(
        self,
        peer: ThinPeer,
        served: ServedModel,
        config: SessionConfig,
        hosting: NodeCommand,
        waits: Waits,
    ) -> None:
        self.model, self.defaults, self.tokenizer = served.id, served.defaults, served.tokenizer
        self._peer, self._config, self._waits = peer, config, waits
        self._router = Router(peer.directory, peer.ping, Weights(served.id), served.num_blocks, hosting, regard_of(peer),
                              takes_newest=served.is_in_training)  # fmt: skip
        self._sessions: list[Session] = []
        self._ending = Tasks()
        """Sessions whose hops are being told that they have ended."""
        self._prefixes = None if served.is_in_training else Prefixes(self._router.clock.now_s)

    def start(self) -> TokenSequence:
        """A sequence without tokens, in a session of its own; nothing is sent before its first step."""
        session = Session(self._router, Links(self._peer.pool), self._peer.identity, self._config, self._waits)
        self._sessions.append(session)
        return TokenSequence(session)

    async def embed(self, ids: Sequence[int]) -> Vector:
        """The embedding of one text, by its token ids; as `embedding.embed`. Several at once are computed together."""
        sequence = self.start()
        try:
            return await embed(sequence.session, ids)
        finally:
            await self.end(sequence)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those that have begun and not ended."""
        return tuple(self._sessions)

    def num_replaced(self, sequence: TokenSequence) -> int:
        """Nodes that were lost under it and replaced; also after its end."""
        session = sequence.session
        assert isinstance(session, Session)
        return session.replaced

    async def begin(self, prompt: Sequence[int], owner: str = "") -> TokenSequence:
        """A sequence that holds what another session of `owner` has computed of `prompt`, or no tokens; in a session of its own.

        Of an ended one, or of one that is open: then it waits until the common tokens are computed. Its route prefers the hops of that
        session. If one of them has freed it, it is sent the tokens again: then nothing is saved, and nothing is lost. The prompt must not
        be changed before `end`. Not for a model in training, whose answers begin with the newest version.
        """
        if self._prefixes is None:
            return self.start()
        sequence = await self._found(self._prefixes, prompt, owner)
        self._prefixes.open.add(owner, prompt, sequence)
        return sequence

    async def _found(self, prefixes: Prefixes, prompt: Sequence[int], owner: str) -> TokenSequence:
        while True:  # the tokens that it waits for may never be computed
            ended, (count, source) = prefixes.longest(owner, prompt), prefixes.open.longest(owner, prompt)
            num_kept = 0 if ended is None else ended.num_common
            if source is not None and count >= num_kept + MIN_TOKENS:
                sequence = await prefixes.open.fork(source, prompt[:count])
            elif ended is not None:
                sequence = TokenSequence(await ended.session.fork(num_kept), prompt[:num_kept])
            else:
                return self.start()
            if sequence is not None:
                assert isinstance(sequence.session, Session)
                self._sessions.append(sequence.session)
                return sequence

    async def compute_once(self, prompt: Sequence[int], owner: str = "") -> int:
        """Compute a prompt with which several sequences are about to `begin`, so that each computes its last token only.

        Returns how many of its tokens were not computed even now. Does nothing for a short prompt, or a model in training.
        """
        most = prompt[:-1]
        if self._prefixes is None or len(most) < MIN_TOKENS:
            return 0
        sequence, is_whole = await self.begin(most, owner), False
        try:
            await sequence.feed(most[len(sequence.held) :], 1, 1)
            is_whole = True
            return sequence.num_reused
        finally:
            await self.end(sequence, owner if is_whole else None)

    def limits(self, max_new_tokens: int) -> Limits:
        """Where an answer of this model ends."""
        own = self.defaults
        return Limits(max_new_tokens=max_new_tokens, ends=own.ends, max_positions=own.max_positions, vocab_size=own.vocab_size)

    async def end(self, sequence: TokenSequence, keep_for: str | None = None) -> None:
        """Free a sequence's memory at every hop. keep_for: hops may keep it for `begin` of that owner, while their memory is free."""
        session, prefixes = sequence.session, self._prefixes
        assert isinstance(session, Session)
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        is_asked = keep_for is not None and len(sequence.held) >= MIN_TOKENS
        try:
            keep_s = KEEP_S if prefixes is not None and is_asked else 0
            await asyncio.shield(self._ending.keep(session.close(keep_s), f"end of {session}"))
            if session.is_kept and prefixes is not None and keep_for is not None:
                prefixes.add(keep_for, sequence.held, session)
        finally:
            if prefixes is not None:
                prefixes.open.remove(sequence)

    async def close(self) -> None:
        """End every session; returns when their hops have been told, also of those that a cancelled `end` began to end."""
        while self._sessions:
            session = self._sessions.pop()
            self._ending.keep(session.close(), f"end of {session}")
        await self._ending.wait()
        self._router.close()


@contextlib.asynccontextmanager
async def open_model(
    name: str,
    *,
    peers: Sequence[str],
    root: Path,
    swarm: str = "public",
    dtype: str = "auto",
    route_timeout_s: float = ROUTE_TIMEOUT_S,
    priority: int = 0,
    find: FindConfig = NOBODY_ELSE,
    waits: Waits | None = None,
    entry: Entry = ANYBODY,
    accept_new_weights: bool = False,
    follow: bool = False,
) -> AsyncIterator[ThinModel]:
    """Meet the swarm, find the model and fetch its small files; whatever was opened is closed at the end.

    find: which peers to ask if none of `peers` answers. entry: a private swarm's key, whom we talk to, who we are.
    root: where fetched files are kept; beside it, what names meant before.
    accept_new_weights: take what is served now, even if the name meant other weights before.
    dtype: compute dtype of the route; auto = the one in which most blocks are served.
    follow: of a model in training, as `SessionConfig.follow`.
    priority: 0, or down to -100; the lower, the more device time others get. waits: where is said what is being waited for.
    Raises PeerUnreachableError, ModelNotFoundError, NoRouteError, or what is wrong with the model's files.
    """
    waits = waits or Waits()
    hosting = NodeCommand(swarm=swarm, peer=next(iter(peers), ""), data_dir=root.parent)
    async with contextlib.AsyncExitStack() as stack:
        with waits.reporting() as slot:
            slot.set(waiting.JOINING)
            sandbox = Sandbox(name)
            stack.callback(sandbox.close)
            sandbox.start()  # while others are met
            peer = await stack.enter_async_context(ThinPeer(peers, swarm, find, entry))
            naming = Naming.of(peer.ping, root.parent, keyring.known_as(swarm, entry.key), accept_new_weights)
            with peer.clocks.explaining():
                found = await model_lookup.wait_for(peer.directory, name, naming, route_timeout_s, hosting, slot)
            slot.set(waiting.fetching(f"config and tokenizer of {found.model.name}"))
            cache = await open_cache(root, found, peer.pool, naming)
        with contextlib.closing(cache):
            served = await served_model.read(found, cache, sandbox)
        config = SessionConfig(
            route_timeout_s=route_timeout_s, priority=priority, dtype=served.usual_dtype if dtype == "auto" else dtype,
            hidden_size=served.defaults.hidden_size or 1, vocab_size=served.defaults.vocab_size, follow=follow,
        )  # fmt: skip
        model = ThinModel(peer, served, config, hosting, waits)
        stack.push_async_callback(model.close)
        yield model
