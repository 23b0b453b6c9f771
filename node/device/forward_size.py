"""Size of the next forward: decodes, prefill chunks, and the wait.

Pure functions of what waits, of measured costs and of the time. *Decodes* are steps of few tokens a sequence (a speculated run is one) and
of few sequences, *prompts* are all larger steps; a prompt is run in prefill chunks (`chunk_*` in names).

Prompts: while other sessions decode, a prefill chunk takes about as long as one of their steps, and in all prompts take no longer than
those steps, so that at worst a decode takes twice as long. While no session decodes, it takes as long as a new client may wait.
Pipelined batches: if all sessions of a route go in one batch, the other hops are idle meanwhile. If the steps spend long at other hops and
at clients, several batches, one after the other, are better; if they come back at once, one large batch is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from node.device.costs import Costs

DECODE_TOKENS = 8
"""Limit of the new tokens of one sequence in a decode: as many as speculation sends."""

LARGE_TOKENS = 128
"""Limit of the new tokens of all sequences in a decode: a larger step is run in prefill chunks, however few tokens each sequence has."""

UNCUT_SHARE = 0.1
"""Largest share of the time that a client's long copies take while other clients decode: copies cannot be cut."""

ACTIVE_S = 1.0
"""Age of a session's last decode, at most, for which it counts as decoding."""

CHUNK_SHARE = 0.6
"""A prefill chunk's share of a decode step's time; below 1 since estimates err, and decodes must not take more than twice as long."""
LONE_CHUNK_MS = 250.0
"""Milliseconds of a prefill chunk while no session decodes: a new client may wait so long, and cutting costs almost nothing."""
FIRST_CHUNK_TOKENS = 16
"""Tokens of the first prefill chunk, before a token's cost is known, and the least while no session decodes."""
CROWDED_MS = 1.0
"""Least milliseconds of a prefill chunk beside decodes: a shorter one is mostly overhead, and waits for more credit."""
LEAST_CREDIT_MS = 1.01 * CROWDED_MS / CHUNK_SHARE
"""Least limit of the prefill chunks' credit in milliseconds, however short decodes are: enough for one."""

PIPELINING_GAIN = 0.95
"""Share of a round's time to which one more batch must shorten it."""

GATHER_SHARE = 0.8
"""Batching delay at most, as a share of a decode step's time: so long a free device waits for decodes that are due. Waiting pays even if
some do not come: a decode that runs alone runs alone at every hop and in every round (docs/log.md has the numbers)."""
MAX_GATHER_MS = 50.0
"""Limit of the batching delay in milliseconds."""

MAX_FORWARD_STEPS = 4.0
"""Limit of one forward if several clients decode, in decode steps of one sequence: no client waits longer for the device."""


def is_decode(counts: Sequence[int], num_tokens: int) -> bool:
    """Whether a step is a decode. counts: new tokens of each sequence; num_tokens: their sum."""
    return max(counts, default=0) <= DECODE_TOKENS and num_tokens <= LARGE_TOKENS


def chunk_ms(costs: Costs, num_decoding: int, num_waiting: int, credit_ms: float, beside_ms: float = 0.0) -> float:
    """Milliseconds of prefill chunks in the next forward; 0 = it has none.

    num_decoding: sessions that decode now; num_waiting: of these, those whose step is ready. credit_ms: what those decodes have taken and
    prompts have not: while a decode waits, prompts take no more than that. While no decode waits, they take what time is left.
    beside_ms: what the decodes of the device's other hosts take in a round: prompts take about as long, since hosts get equal shares.
    """
    if not num_decoding:
        return min(LONE_CHUNK_MS, max(CROWDED_MS, beside_ms)) if beside_ms else LONE_CHUNK_MS
    step_ms = max(CROWDED_MS, CHUNK_SHARE * costs.decode_ms(num_decoding))
    if not num_waiting:
        return step_ms
    granted = min(step_ms, CHUNK_SHARE * credit_ms)
    return granted if granted >= CROWDED_MS else 0.0


def rest_ms(costs: Costs, spent_ms: float, num_others: int) -> float:
    """Milliseconds for which a client's next copies wait after copies of `spent_ms`, so that copies take UNCUT_SHARE of the time at most.

    num_others: other clients that decode now. Copies no longer than MAX_FORWARD_STEPS, and those that delay no other client, cost no rest.
    """
    is_short = spent_ms <= MAX_FORWARD_STEPS * costs.decode_ms(1)
    return 0.0 if is_short or not num_others else spent_ms * (1 / UNCUT_SHARE - 1)


def chunk_tokens(costs: Costs, ms: float, *, is_alone: bool) -> int:
    """Tokens of prompts that take about `ms`; at least one."""
    if costs.token_ms is None:
        return FIRST_CHUNK_TOKENS
    return max(FIRST_CHUNK_TOKENS if is_alone else 1, int(ms / max(costs.token_ms, 1e-6)))


def num_pipelined_batches(costs: Costs, num_decoding: int, num_hops: int, inter_arrival_ms: float) -> int:
    """Number of pipelined batches of the decoding sessions, for which a round (each session is served once) is shortest.

    num_hops: of their routes; more batches than hops would only wait for each other. inter_arrival_ms: from a step's end to
    the session's next step: other hops, the network, the client.
    One batch: its time, then inter_arrival_ms. Several: while one is at other hops,
    the others are served, so the longer of the two counts.
    """
    best, best_ms = 1, costs.decode_ms(num_decoding) + inter_arrival_ms
    for num_batches in range(2, min(num_hops, num_decoding) + 1):
        one_ms = costs.decode_ms(math.ceil(num_decoding / num_batches))
        round_ms = max(num_batches * one_ms, one_ms + inter_arrival_ms)
        if round_ms < PIPELINING_GAIN * best_ms:
            best, best_ms = num_batches, round_ms
    return best


def pipelined_batch_size(costs: Costs, num_decoding: int, num_hops: int, inter_arrival_ms: float) -> int:
    """Number of sessions whose decodes share a forward."""
    return math.ceil(num_decoding / num_pipelined_batches(costs, num_decoding, num_hops, inter_arrival_ms))


def gather_until(now_s: float, since_s: float, due_s: Sequence[float], max_delay_s: float) -> float:
    """Until when a forward waits for expected decodes; `now_s` = it runs at once.

    since_s: since when a step waits while the device is free. due_s: when the next decodes should arrive. One that is late by more than
    `max_delay_s` is not expected any more; one that is due later than `since_s + max_delay_s` is not waited for.
    """
    end_s = since_s + max_delay_s
    if now_s >= end_s:
        return now_s
    coming = [due for due in due_s if now_s - max_delay_s <= due <= end_s]
    return end_s if coming else now_s


def max_batching_delay_s(costs: Costs, num_decodes: int) -> float:
    """Longest batching delay, in seconds, before a forward of `num_decodes` decodes."""
    return min(MAX_GATHER_MS, GATHER_SHARE * costs.decode_ms(num_decodes)) / 1e3


def fits_one_forward(costs: Costs, num_decodes: int, num_clients: int) -> bool:
    """Whether so many decodes of so many clients may be one forward: at most twice the most so far, so that their time is known."""
    is_known = num_decodes <= 2 * max(1, costs.most_decodes)
    return num_clients < 2 or (is_known and costs.decode_ms(num_decodes) <= MAX_FORWARD_STEPS * costs.decode_ms(1))
