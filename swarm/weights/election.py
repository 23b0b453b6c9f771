"""Which weights a name means, by the peers that serve it.

Those of most answering peers on a complete route. A record costs nothing to make up, so what counts is peers that have answered, each
once, and never how many blocks it claims. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from protocols.errors import ModelMismatchError, ModelNotFoundError
from protocols.hosted import Hosted
from protocols.ids import ModelId, PeerId
from protocols.records import PeerRecord
from protocols.words import counted
from swarm.placement.choose import count_replicas
from swarm.placement.members import edges
from swarm.weights.names import is_digest, split_name

_Offer = tuple[PeerId, Hosted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One set of weights, and who serves it."""

    model: ModelId
    num_blocks: int
    """Blocks of the model, as those who serve it say; of several numbers, the one with the most peers on a complete route."""
    on_route: int
    """Peers that are part of a complete route; 0 = there is none."""
    peers: int
    """Peers that serve some of it."""
    blocks: int
    """Blocks that are served."""

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """The smallest is meant."""
        return -self.on_route, -self.peers, -self.blocks, str(self.model)


def tallies(
    records: Iterable[PeerRecord], name: str | None, prefix: str = "", answering: Collection[PeerId] | None = None
) -> list[Tally]:
    """All weights of that name (None = any) and beginning of a digest that are announced, the meant ones first.

    answering: peers that have answered; others count for nothing. None = they were not asked: all count.
    """
    offers: dict[ModelId, list[_Offer]] = {}
    for record in records:
        for served in record.blocks():
            model = served.weights.model
            if name in (None, model.name) and model.digest.startswith(prefix):
                serving = offers.setdefault(model, [])
                if record.state_of(served) == "serving" and (answering is None or record.peer in answering):
                    serving.append((record.peer, served))
    return sorted((_tally(model, serving) for model, serving in offers.items()), key=lambda one: one.rank)


def _tally(model: ModelId, offers: Sequence[_Offer]) -> Tally:
    """By the length of the model that most peers on a complete route agree on: an outlier does not count."""
    lengths = {served.num_blocks for _peer, served in offers}
    counts = [_of_length(model, offers, num_blocks) for num_blocks in lengths]
    empty = Tally(model=model, num_blocks=0, on_route=0, peers=0, blocks=0)
    return min(counts, key=lambda one: (one.rank, one.num_blocks), default=empty)


def _of_length(model: ModelId, offers: Sequence[_Offer], num_blocks: int) -> Tally:
    same = [(peer, served) for peer, served in offers if served.num_blocks == num_blocks]
    return Tally(
        model=model,
        num_blocks=num_blocks,
        on_route=len(_on_routes(same, num_blocks)),
        peers=len({peer for peer, _served in same}),
        blocks=sum(map(bool, count_replicas((served.span for _peer, served in same), num_blocks))),
    )


def _on_routes(offers: Sequence[_Offer], num_blocks: int) -> set[PeerId]:
    """Peers whose spans are part of a route from the first block to the last; a route has one number format."""
    formats: dict[tuple[str, str], list[_Offer]] = {}
    for peer, served in offers:
        formats.setdefault(served.precision, []).append((peer, served))
    found: set[PeerId] = set()
    for group in formats.values():
        from_start, to_end = edges((served.span for _peer, served in group), num_blocks)
        if num_blocks in from_start:
            found |= {peer for peer, served in group if served.span.start in from_start and served.span.stop in to_end}
    return found


def chosen(found: Sequence[Tally], text: str, remembered: str | None = None) -> tuple[Tally, str]:
    """What `text` means of `found` (not empty, the first is the strongest), and what to tell about the rest ("" = there is none).

    remembered: the digest that this name meant here before. ModelMismatchError if it is no longer among them. ModelNotFoundError if
    the beginning of a digest fits several.
    """
    ours = next((one for one in found if one.model.digest == remembered), None)
    digests = {one.model.digest for one in found}
    is_prefix = split_name(text)[1] or (is_digest(text) and text not in {one.model.name for one in found})
    if is_prefix and len(digests) > 1 and ours is None:
        raise ModelNotFoundError(
            f"{text!r} fits {counted(len(digests), 'model')}: {', '.join(short(one.model) for one in found[:4])}; give more of the digest"
        )
    if remembered is not None and ours is None and not is_prefix:
        raise changed(found[0], remembered)
    one = ours or found[0]
    others = [other for other in found if other.model.digest != one.model.digest]
    if not others:
        return one, ""
    why = "as before" if ours else counted(one.peers, "node")
    return one, (
        f"{one.model.name} is served with {len(digests)} different weights: we take {short(one.model)} ({why}), not "
        + ", ".join(f"{short(other.model)} ({counted(other.peers, 'node')})" for other in others[:3])
        + "; NAME@DIGEST chooses"
    )


def changed(now: Tally, before: str) -> ModelMismatchError:
    """The refusal of other weights than those that the name meant before."""
    return ModelMismatchError(
        f"{now.model.name} meant weights {before[:12]} here before, and now the swarm serves {now.model.digest[:12]} by that name "
        f"({counted(now.peers, 'node')}); to take the new ones, say {short(now.model)} or --accept-new-weights "
        "(in Python: accept_new_weights=True)"
    )


def short(model: ModelId) -> str:
    return f"{model.name}@{model.digest[:12]}"
