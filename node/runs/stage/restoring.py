"""Takes a stage to a checkpoint's version when a trainer asks.

    await restoring.restore(kept)       checked, and begun

Forward that is what `TakingPart` does by itself, only sooner. Backward it is done if a keeper, or the stages together, have that version
with the same chains, and if the stages, as seen from here, cannot go on from where they are (`swarm/training/run_version.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from node.runs.stage.taking_part import TakingPart
from protocols.errors import BadRequestError, NotAgreedError, SwarmError
from protocols.ids import PeerId, short_peer
from protocols.kept import Kept
from swarm.tasks import Tasks
from swarm.training.members import Holder
from swarm.training.run_version import Going, Lost, judge

log = logging.getLogger(__name__)


class Restoring:
    """Of one run at one stage. Belongs to one event loop."""

    def __init__(self, part: TakingPart) -> None:
        self._part, self._tasks = part, Tasks()
        self._under_way: Kept | None = None

    async def restore(self, kept: Kept, caller: PeerId) -> int:
        """Go to this checkpoint's version in the background. A second call for the same one changes nothing.

        BadRequestError: it lacks units of ours. NotAgreedError: no peers are found that have it, or the run can go on as it is.
        """
        own = self._part.versions
        if lacking := [unit for unit in own if unit not in kept.chains]:
            raise BadRequestError(f"the checkpoint of version {kept.version} lacks {lacking[0]}, which this stage trains")
        if set(own.values()) == {kept.version} or self._under_way == kept:
            return kept.version
        holders = await self._part.look()
        if kept not in await self._part.kept(holders):
            raise NotAgreedError(
                f"version {kept.version} with these chains is not known here: no keeper has it, nor the stages together"
            )
        if max(own.values()) > kept.version:
            self._check_need(kept, holders)
        if self._under_way is None:
            self._under_way = kept
            self._tasks.keep(self._go(kept, holders, caller), f"restore version {kept.version}")
        return kept.version

    async def stop(self) -> None:
        """Cancel what is under way: units that have come stay."""
        await self._tasks.stop()

    def _check_need(self, kept: Kept, holders: Sequence[Holder]) -> None:
        stages = [self._part.versions, *(holder.units for holder in holders)]
        verdict = judge(stages, [kept], kept.chains.keys())
        if not (isinstance(verdict, Lost) or verdict == Going(version=kept.version)):
            raise NotAgreedError(f"the stages can go on as they are: nothing goes back to version {kept.version}")

    async def _go(self, kept: Kept, holders: Sequence[Holder], caller: PeerId) -> None:
        try:
            await self._part.go_to(kept, holders, f"trainer {short_peer(caller)}")
        except SwarmError as error:
            log.warning("version %d cannot be restored: %s", kept.version, error)
        finally:
            self._under_way = None
