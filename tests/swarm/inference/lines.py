"""A session of one hop between two lines of a test."""

from __future__ import annotations

from protocols import compression
from protocols.ids import SessionId
from protocols.inference import Expect, History, Reply
from tests.swarm.inference.probe import Line, Probe, grant_of, hop_of
from tests.swarm.inference.toy import ToyNode, random_tokens

SESSION = SessionId(b"s" * 16)
WHOLE = [(0, 4)]


async def opened(client: Probe, node: ToyNode) -> tuple[Line, Line]:
    """A session of one hop: the line down, and the line on which replies come."""
    grant = grant_of(client.identity, [hop_of(node)])
    replies = await client.attach(node, grant)
    line = await client.open(node, grant)
    assert await line.hear() == Expect(session=SESSION, epoch=0, step=0)
    return line, replies


async def reply_of(replies: Line) -> Reply:
    reply = await replies.hear()
    assert isinstance(reply, Reply), reply
    return reply


def num_sessions(node: ToyNode) -> int:
    return node.host.num_sessions


def history_of(base: int, part: int, parts: int, counts: list[int], epoch: int = 0) -> History:
    return History(session=SESSION, epoch=epoch, base=base, counts=tuple(counts), part=part, parts=parts,
                   payload=compression.pack(random_tokens(sum(counts))))  # fmt: skip
