"""The plan of a group: whose sums are added, what is missing.

Pure: the same cards give the same plan at every member, so each computes it alone.

An index cannot be taken out of a sum. If two sums share one, the smaller sum stays out, and its other indices are missing. Which replica
is behind: one of an older version, or one on the other side of a fork. The side that goes on has the trainer's chains, so that all groups
choose the same one; if no member has those, it is the side with more members, and of two equal ones that with the smaller chain. There is
no defence here against a member that lies about its version or its ledger: it can keep a group from agreeing, or bring a wrong gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from protocols import identity
from protocols.cards import Agreement, Card
from protocols.errors import UnauthenticatedError
from protocols.groups import Group
from protocols.ids import PeerId, short_peer
from protocols.masks import indices_of
from protocols.parts_of_units import parts_of
from swarm.averaging.replica import Reopening


class MemberFailedError(Exception):
    """A group cannot go on. `peer`: because of which member, if it is one."""

    def __init__(self, peer: PeerId | None, text: str) -> None:
        super().__init__(text)
        self.peer = peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Members are named by their place in the group."""

    taking_part: tuple[int, ...]
    """They have the version and the chain: they reduce, vote and step."""
    included: tuple[int, ...]
    """Of these, whose sums are added, in member order."""
    duplicated: tuple[int, ...]
    """Of these, whose sums share an index with a larger one: they contribute nothing, and drop their sums."""
    behind: tuple[int, ...]
    """They must fetch the state of another member."""
    missing: tuple[int, ...]
    """By the group's parts: a mask of the indices that no included sum has."""
    num_targets: int
    """Target tokens of all indices that are in included sums."""
    version: int
    """The highest of any member; beyond the group's own, the whole group is behind."""
    chains: tuple[bytes, ...]
    """Of the members that take part, by the group's units."""
    num_values: tuple[int, ...]
    """Of each of the group's units."""
    agreed: Agreement | None = None
    """Some member has agreed already, in another group."""

    @property
    def is_complete(self) -> bool:
        """All indices of all parts are there."""
        return not any(self.missing)

    def reopening(self, place: int) -> Reopening:
        """What a member does with its sum if the group does not agree."""
        if place in self.behind:
            return "behind"
        return "reset" if place in self.duplicated else "as before"


def check_cards(group: Group, cards: Sequence[Card]) -> None:
    """Return if these are the group's members' cards, in member order, each signed; MemberFailedError names the first that is not."""
    if len(cards) != len(group.members):
        raise MemberFailedError(None, f"{len(cards)} cards of {len(group.members)} members")
    digest, counts = group.digest(), [len(parts_of(unit)) for unit in group.units]
    for member, card in zip(group.members, cards, strict=True):
        who = short_peer(member.peer)
        if card.peer != member.peer or card.group != digest:
            raise MemberFailedError(member.peer, f"the card of {who} is of another peer or another group")
        if [len(unit.held) for unit in card.ledger.units] != counts or card.ledger.any_held > group.whole:
            raise MemberFailedError(member.peer, f"the card of {who} does not fit the group's units and micro-batches")
        try:
            identity.verify(card.peer, card.signature, card.signed_bytes())
        except UnauthenticatedError as error:
            raise MemberFailedError(member.peer, f"the card of {who}: {error}") from None


def plan(group: Group, cards: Sequence[Card]) -> Plan:
    """From the checked cards of all members, in member order. MemberFailedError if two members count a unit's values differently."""
    ledgers = [card.ledger for card in cards]
    version = max(ledger.version for ledger in ledgers)
    chains = [tuple(unit.chain for unit in ledger.units) for ledger in ledgers]
    newest = [place for place, ledger in enumerate(ledgers) if ledger.version == version]
    votes = Counter(chains[place] for place in newest)
    best = group.chains if group.chains in votes else min(votes, key=lambda side: (-votes[side], side))
    taking_part = tuple(place for place in newest if chains[place] == best)
    included, duplicated, targets = _choose(cards, taking_part)
    held = [0] * len(group.parts)
    for place in included:
        held = [mask | more for mask, more in zip(held, ledgers[place].held, strict=True)]
    agreements = Counter(card.agreed for card in cards if card.agreed is not None)
    return Plan(
        taking_part=taking_part,
        included=included,
        duplicated=duplicated,
        behind=tuple(place for place in range(len(cards)) if place not in taking_part),
        missing=tuple(group.whole & ~mask for mask in held),
        num_targets=sum(targets.values()),
        version=version,
        chains=best,
        num_values=_sizes(group, cards, taking_part),
        agreed=agreements.most_common(1)[0][0] if agreements else None,
    )


def _choose(cards: Sequence[Card], candidates: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], dict[int, int]]:
    """(included, duplicated, target tokens by index): larger sums first, then member order.

    A sum that counts the target tokens of an index differently is left out like one that shares an index.
    """
    included, duplicated = [], []
    held: list[int] = []
    targets: dict[int, int] = {}
    for place in sorted(candidates, key=lambda place: (-cards[place].ledger.size, place)):
        ledger = cards[place].ledger
        if not ledger.size:
            continue
        held = held or [0] * len(ledger.held)
        is_shared = any(mask & other for mask, other in zip(held, ledger.held, strict=True))
        if is_shared or any(targets.get(index, count) != count for index, count in ledger.num_targets.items()):
            duplicated.append(place)
            continue
        included.append(place)
        held = [mask | more for mask, more in zip(held, ledger.held, strict=True)]
        targets |= ledger.num_targets
    return tuple(sorted(included)), tuple(sorted(duplicated)), targets


def _sizes(group: Group, cards: Sequence[Card], taking_part: Sequence[int]) -> tuple[int, ...]:
    """Of the units; a card that says only what was agreed has none."""
    taking_part = [place for place in taking_part if cards[place].agreed is None] or taking_part
    first = tuple(unit.num_values for unit in cards[taking_part[0]].ledger.units)
    for place in taking_part:
        for unit, size, own in zip(group.units, first, cards[place].ledger.units, strict=True):
            if own.num_values != size:
                who, other = cards[place].peer, cards[taking_part[0]].peer
                raise MemberFailedError(
                    who, f"{unit} has {own.num_values} values at {short_peer(who)} and {size} at {short_peer(other)}"
                )
    return first


def missing_text(group: Group, missing: Sequence[int]) -> str:
    """For a person: how many indices of which parts are missing."""
    named = [f"{part}: {mask.bit_count()}" for part, mask in zip(group.parts, missing, strict=True) if mask]
    some = next(iter(indices_of(next(mask for mask in missing if mask))), 0)
    return f"missing micro-batches: {', '.join(named[:4])}{' …' if len(named) > 4 else ''} (first: {some})"
