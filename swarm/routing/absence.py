"""The error if there is no route.

It says what is missing, the last failure, and the command that would host it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.errors import ModelMismatchError, NoRouteError, VersionGoneError
from protocols.ids import ModelId, Span
from protocols.units import ENDS
from protocols.weights_id import Weights, short
from swarm import waiting
from swarm.routing import path
from swarm.routing.offers import Offer, Wish
from swarm.suggestion import NodeCommand
from swarm.waiting import Wait


def gaps(live: Sequence[Offer], wish: Wish, num_blocks: int) -> list[Span]:
    """The wished blocks that none of `live` hosts, or that no path crosses."""
    spans = {offer.hosted.span for offer in live}
    return path.unhosted(spans, wish.blocks) if wish.blocks else path.missing(spans, num_blocks)


def wait(live: Sequence[Offer], wish: Wish, num_blocks: int, since_s: float, route_timeout_s: float) -> Wait:
    """What is being waited for."""
    missing = gaps(live, wish, num_blocks)
    if wish.needs and live and not missing:
        return waiting.missing_ends(since_s, route_timeout_s)
    return waiting.missing(missing, since_s, route_timeout_s)


def no_route(
    live: Sequence[Offer], wish: Wish, model: ModelId, num_blocks: int, route_timeout_s: float, cause: str, hosting: NodeCommand
) -> NoRouteError:
    """cause: the last failure, in brackets; "" = there was none. hosting: what people are told to type."""
    missing = gaps(live, wish, num_blocks)
    if wish.needs and live and not missing:
        return _no_ends(live, model, num_blocks, route_timeout_s, cause, hosting)
    missing = missing or [wish.blocks or Span(0, num_blocks)]
    return NoRouteError(
        f"no live peers cover blocks {', '.join(map(str, missing))} of {model.name} after {route_timeout_s:.0f} s{cause}; "
        f"wait for a node to join, or host them: {hosting.text(model.name, '--blocks', str(missing[0]))}"
    )


def _no_ends(
    live: Sequence[Offer], model: ModelId, num_blocks: int, route_timeout_s: float, cause: str, hosting: NodeCommand
) -> NoRouteError:
    """The blocks are there, but a thin client needs more."""
    spans = [offer.hosted.span for offer in live]
    edges = {0: [span for span in spans if span.start == 0],
             num_blocks - 1: [span for span in spans if span.stop == num_blocks]}  # fmt: skip
    hosted = {offer.hosted.span for offer in live if offer.beside >= ENDS}
    lacking = [block for block, there in edges.items() if not hosted.intersection(there)]
    where = " and ".join(f"block {block}" for block in lacking or edges)
    span = min(edges[(lacking or [0])[0]])
    return NoRouteError(
        f"no node hosts embedding and head of {model.name} with {where} after {route_timeout_s:.0f} s{cause}; a thin client needs them: "
        f"ask without --thin, or start one with --ends: {hosting.text(model.name, '--ends', '--blocks', str(span))}"
    )


def gone(weights: Weights, now: Weights) -> VersionGoneError:
    """now: the newest version that is served."""
    return VersionGoneError(
        f"version {weights.version} of {weights.model.name}, which this session began with, is served no more: its nodes serve version "
        f"{now.version} now; ask again, or let the session follow (--follow, follow=True)"
    )


def mismatch(offers: Sequence[Offer], weights: Weights) -> ModelMismatchError:
    """Only other weights are served by this name."""
    model, ours = weights.model, short(weights).rpartition("@")[2]
    others = sorted({short(offer.hosted.weights).rpartition("@")[2] for offer in offers})
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return ModelMismatchError(
        f"the swarm serves {model.name} with other weights (digest {', '.join(others[:3])}{more}) than yours ({ours}): "
        "use the same checkpoint as its nodes, or host yours under another --model-name"
    )
