"""Sessions that have ended here, at least until their grants expire.

A grant that was used and closed opens nothing again. The oldest are forgotten first.

The hop above holds the client's grant and could say Open once more. A client that wants a hop back signs a later epoch.
"""

from __future__ import annotations

from collections import OrderedDict

from protocols.errors import UnauthenticatedError
from protocols.ids import PeerId, SessionId, Span, short
from protocols.inference import Grant

MAX_PER_CLIENT = 512
"""Closed sessions that are remembered of one client; beyond it the first that was closed is forgotten."""

MAX_CLIENTS = 1_024
"""Clients whose closed sessions are remembered; beyond it the one that closed none for longest is forgotten."""

_Own = OrderedDict[tuple[SessionId, Span], tuple[int, float]]


class Closed:
    """The last epoch of each closed session, by client."""

    def __init__(self) -> None:
        self._clients: OrderedDict[PeerId, _Own] = OrderedDict()

    def note(self, grant: Grant, span: Span, now_s: float) -> None:
        """The session that ran `span` here under `grant` has ended."""
        own = self._clients.pop(grant.client, _Own())
        self._clients[grant.client] = own
        before = own.pop((grant.session, span), (-1, 0.0))
        own[grant.session, span] = max(before, (grant.epoch, grant.expires_s))
        # only the oldest: a look at all of them took 6 % of a node's time
        while own and (len(own) > MAX_PER_CLIENT or next(iter(own.values()))[1] <= now_s):
            own.popitem(last=False)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)

    def check(self, grant: Grant, span: Span) -> None:
        """UnauthenticatedError if the session has ended here in this epoch or a later one."""
        epoch, _ = self._clients.get(grant.client, _Own()).get((grant.session, span), (-1, 0.0))
        if grant.epoch <= epoch:
            raise UnauthenticatedError(
                f"session {short(grant.session)} ended here in epoch {epoch}, and this grant is of epoch {grant.epoch}: "
                "only a later one, signed by its client, opens it again"
            )
