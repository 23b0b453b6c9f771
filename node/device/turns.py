"""How large the next forward is: how many decodes go together, how much of a prompt goes beside them, and how long to wait for more.

Pure: what waits, what was measured and the clock come in, numbers come out. *Decodes* are steps of a few tokens a row (a speculated run
is one) and of few rows, *prompts* all larger ones; a prompt is run in pieces.

Pieces: while others decode, a piece takes about as long as one of their steps, and in all no more than what they take themselves,
so that at worst they wait twice as long. While nobody does, it takes as long as a newcomer may be kept waiting.
Waves: sessions that march through a route as one batch keep all other hops idle. Where their steps are away for long, it is better to
let them go in several batches, one behind the other; where they come back at once, one large batch is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from node.device.costs import Costs

DECODE_TOKENS = 8
"""New tokens of a row, at most, that make a step a decode: what speculation brings."""

LARGE_TOKENS = 128
"""New tokens of all rows together from which a step counts as a prompt, however few a row brings: it is run in pieces beside decodes."""

UNCUT_SHARE = 0.1
"""Largest share of the time that a client's long row operations take while other clients decode: copies cannot be run in pieces."""

ACTIVE_S = 1.0
"""A session decodes as long as its last decode is not older."""

PIECE_SHARE = 0.6
"""A piece's share of a decode step's time; below 1 since estimates err, and tokens must not take more than twice as long."""
LONE_PIECE_MS = 250.0
"""A piece while nobody decodes: how long a newcomer may wait, and long enough that cutting costs nothing."""
FIRST_PIECE_TOKENS = 16
"""The first piece of all, before it is known what a token costs, and the least while nobody decodes."""
CROWDED_MS = 1.0
"""A piece beside decodes is at least so long: a shorter one is mostly overhead, and may wait until more is owed to it."""
LEAST_CREDIT_MS = 1.01 * CROWDED_MS / PIECE_SHARE
"""What can be owed to pieces at least, however short decodes are: enough for one."""

WAVE_GAIN = 0.95
"""Another wave must shorten the time of a round at least to this share."""

GATHER_SHARE = 0.8
"""Of a decode step's time: how long those that wait, while the device is free, wait for others that are due. It pays even in vain now
and then: whoever goes alone is alone at every hop and every round (docs/log.md has the numbers)."""
MAX_GATHER_MS = 50.0

TURN_STEPS = 4.0
"""Where several clients decode, one forward takes no longer than so many of a single step: nobody waits longer for a turn."""


def is_decode(counts: Sequence[int], num_tokens: int) -> bool:
    """Is a step with so many new tokens of each row a decode? num_tokens: their sum."""
    return max(counts, default=0) <= DECODE_TOKENS and num_tokens <= LARGE_TOKENS


def piece_ms(costs: Costs, num_decoding: int, num_waiting: int, credit_ms: float, beside_ms: float = 0.0) -> float:
    """Milliseconds for prompts in the next forward; 0: it goes without.

    num_decoding: sessions that decode now; num_waiting: of these, whose step is ready to run. credit_ms: what those decodes have taken
    and pieces have not: while a decode waits, pieces take no more than that. While all are away, they take the time that is left over.
    beside_ms: what the decodes of the device's other hosts take in a round: a piece takes about as long, since hosts get equal shares.
    """
    if not num_decoding:
        return min(LONE_PIECE_MS, max(CROWDED_MS, beside_ms)) if beside_ms else LONE_PIECE_MS
    step_ms = max(CROWDED_MS, PIECE_SHARE * costs.decode_ms(num_decoding))
    if not num_waiting:
        return step_ms
    granted = min(step_ms, PIECE_SHARE * credit_ms)
    return granted if granted >= CROWDED_MS else 0.0


def rest_ms(costs: Costs, spent_ms: float, num_others: int) -> float:
    """How long a client's next copies of rows wait, if the last ones took `spent_ms`, so that they keep to UNCUT_SHARE of the time.

    num_others: other clients that decode now. Copies as short as a turn, and those that delay no other client, cost no rest.
    """
    is_short = spent_ms <= TURN_STEPS * costs.decode_ms(1)
    return 0.0 if is_short or not num_others else spent_ms * (1 / UNCUT_SHARE - 1)


def piece_tokens(costs: Costs, ms: float, *, is_alone: bool) -> int:
    """Tokens of prompts that take about `ms`; at least one."""
    if costs.token_ms is None:
        return FIRST_PIECE_TOKENS
    return max(FIRST_PIECE_TOKENS if is_alone else 1, int(ms / max(costs.token_ms, 1e-6)))


def num_waves(costs: Costs, num_decoding: int, num_hops: int, away_ms: float) -> int:
    """In how many batches the sessions that decode should go, so that a round (each is served once) is shortest.

    num_hops: of their routes; more waves than hops would only wait for each other. away_ms: how long a step is elsewhere before the
    session's next one comes: other hops, the network, the client.
    One batch: its time, then all are away. Several: while one is away the others are served, so the longer of the two counts.
    """
    best, best_ms = 1, costs.decode_ms(num_decoding) + away_ms
    for waves in range(2, min(num_hops, num_decoding) + 1):
        one_ms = costs.decode_ms(math.ceil(num_decoding / waves))
        round_ms = max(waves * one_ms, one_ms + away_ms)
        if round_ms < WAVE_GAIN * best_ms:
            best, best_ms = waves, round_ms
    return best


def wave_size(costs: Costs, num_decoding: int, num_hops: int, away_ms: float) -> int:
    """Sessions whose decodes share a forward."""
    return math.ceil(num_decoding / num_waves(costs, num_decoding, num_hops, away_ms))


def gather_until(now_s: float, since_s: float, due_s: Sequence[float], patience_s: float) -> float:
    """Until when a forward waits for decodes that are expected; `now_s`: it goes at once.

    since_s: since when one waits while the device is free. due_s: when the sessions that are away should be back. One that is late by more
    than the patience is not expected any more, and one that is not due within it is not waited for.
    """
    end_s = since_s + patience_s
    if now_s >= end_s:
        return now_s
    coming = [due for due in due_s if now_s - patience_s <= due <= end_s]
    return end_s if coming else now_s


def patience_s(costs: Costs, num_rows: int) -> float:
    """How long it may pay to wait for more rows, in seconds."""
    return min(MAX_GATHER_MS, GATHER_SHARE * costs.decode_ms(num_rows)) / 1e3


def fits_a_turn(costs: Costs, num_rows: int, num_clients: int) -> bool:
    """May so many decodes of so many clients be one forward? At most twice as many as ever yet: what they cost is known before."""
    is_known = num_rows <= 2 * max(1, costs.most_rows)
    return num_clients < 2 or (is_known and costs.decode_ms(num_rows) <= TURN_STEPS * costs.decode_ms(1))
