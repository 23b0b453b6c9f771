"""A replica of training units, as averaging sees it.

The order of calls for one group: `card`; then, unless the group ends there, `sums` (only if this replica's sum is used), `extra`, and at
last one of `apply` and `reopen`. Between `card` and these, the ledgers of the group's units are closed: nothing is added to a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from protocols.cards import Ledger
from protocols.groups import Group
from protocols.units import Unit

Reopening = Literal["as before", "reset", "behind"]
"""What a group that did not agree leaves to a replica.

as before: sum and ledger stay, and more may be added. reset: the sum shares an index with a larger one, so it must be dropped, ledger
included; its other indices are computed again. behind: others have a later version, or are on the side of a fork that goes on, so this one
must fetch their state. Its sum is of no use and is dropped.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """The sum over all micro-batches of one version: the same bits at every member of the group."""

    values: Tensor
    """float32 [N], on the CPU: the group's units one after the other. To be divided by `num_targets`."""
    norms: Mapping[Unit, float]
    """Of each unit: the sum of squares of its values. Computed once, by the slices' reducers, so that all members clip alike."""
    digest: bytes
    """32 bytes: over the encoded reduced bytes, the norms and the extras. What all members voted for."""
    num_targets: int
    """Target tokens of the whole batch."""
    chains: Mapping[Unit, bytes]
    """Of each unit: its chain after this step (`protocols.averaging.next_chain`)."""


class Replica(Protocol):
    """The units of one run at one peer. All methods are called from the event loop; those that compute for long are asynchronous."""

    def card(self, group: Group) -> Ledger:
        """Close the ledgers of the group's units, and say what they hold.

        If the version here is another one than the group's, nothing is held: masks are 0. Raises a SwarmError if a unit is not here, or
        its units are of different versions; nothing is closed then.
        """

    async def sums(self, group: Group) -> Tensor:
        """The gradient sums of the group's units, one after the other: float32 [N], contiguous, on the CPU; N as in `card`.

        It must not change until `apply` or `reopen`: it is read while others are waited for.
        """

    def num_extra(self, group: Group, member: int, num_members: int) -> int:
        """How many values `extra` of that member has: the same answer at every member. 0 for most optimizers."""

    async def extra(self, group: Group, reduced: Reduced, member: int, num_members: int) -> Tensor:
        """What this replica, number `member` of `num_members` that take part, computes for all others: float32, `num_extra` values.

        All members get the same bytes (Muon: the updates of every r-th matrix). `reduced.digest` and `.chains` are not known yet: empty.
        """

    async def apply(self, group: Group, reduced: Reduced, extras: Sequence[Tensor]) -> None:
        """Step: version + 1, `reduced.chains`, empty sums and open ledgers. extras: of each member that took part, in member order.

        Called once per agreement. `reduced.values` must not be used after it: their memory takes the next ones. If it raises, this
        replica is broken: others go on.
        """

    def reopen(self, group: Group, how: Reopening) -> None:
        """The group has not agreed: open the ledgers again."""
