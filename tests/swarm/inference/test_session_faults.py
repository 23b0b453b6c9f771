"""Faults of our own in a part of a session.

The caller that waits for a reply gets an error, and a hop with such a fault is replaced.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import torch

from protocols.errors import InternalError, PeerUnreachableError
from protocols.ids import Span
from swarm.inference.client.leg import Leg, Loss
from swarm.inference.client.session import Session
from tests.swarm.inference.probe import FakeHop
from tests.swarm.inference.toy import ToySwarm, ask, random_tokens, reference, until


def broken(*_arguments: Any) -> Any:
    raise ZeroDivisionError


async def broken_call(*_arguments: Any) -> Any:
    raise ZeroDivisionError


def break_look(session: Session) -> None:
    session._legs.current.look = broken_call  # type: ignore[method-assign]


def break_late_s(session: Session) -> None:
    session._legs.late_s = broken  # type: ignore[method-assign]


def break_blame_of_the_current_leg(session: Session) -> None:
    lose(session, session._legs.current)


def break_blame_of_a_rival(session: Session) -> None:
    rival = session._legs._new()
    rival.route = session.route
    session._legs.rivals.append(rival)
    lose(session, rival)


def lose(session: Session, leg: Leg) -> None:
    session._legs._accusations.by_loss = broken  # type: ignore[method-assign]
    session._legs.losses.put_nowait((leg, Loss(leg.epoch, 0, PeerUnreachableError("it is gone"))))


@pytest.mark.parametrize("break_it", [break_look, break_late_s, break_blame_of_the_current_leg, break_blame_of_a_rival])
async def test_a_fault_while_no_reply_comes_raises(swarm: ToySwarm, caplog: pytest.LogCaptureFixture, break_it: Any) -> None:
    swarm.nodes.append(await FakeHop(Span(0, 4)).start())  # type: ignore[arg-type]
    session = swarm.session(stall_s=0.2)
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await until(lambda: bool(session._pending.steps))
    with caplog.at_level(logging.ERROR):
        break_it(session)
        async with asyncio.timeout(60):
            with pytest.raises(InternalError, match="ZeroDivisionError"):
                await asking
    assert "a fault of ours" in caplog.text and "ZeroDivisionError" in caplog.text
    await session.close()


async def test_a_hop_that_cannot_dial_by_a_fault_of_its_own_is_replaced(swarm: ToySwarm) -> None:
    """The hop below it, which was never asked, is not blamed."""
    faulty, below = await swarm.serve(0, 2), await swarm.serve(2, 4)
    assert faulty.host._hops is not None
    faulty.host._hops._links.open = broken_call  # type: ignore[method-assign]
    session, tokens = swarm.session(), random_tokens(2)
    asking = asyncio.create_task(ask(session, (), [2], tokens))
    await until(lambda: isinstance(swarm.router.experience.blame.last_cause, InternalError))
    spare = await swarm.serve(0, 2)
    assert torch.allclose(await asking, torch.stack(reference(list(tokens), [(0, 2), (2, 4)])))
    assert [hop.peer for hop in session.route] == [spare.identity.peer_id, below.identity.peer_id]
    await session.close()
