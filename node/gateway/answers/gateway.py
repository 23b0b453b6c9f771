"""What all requests of a gateway share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Self

from node import metrics
from node.dashboard.dashboard import Dashboard
from node.gateway.answers.config import GatewayConfig
from node.gateway.answers.failovers import Failovers
from node.gateway.answers.models import Models
from node.gateway.callers.accounts import Accounts
from node.gateway.callers.page_orders import PageOrders
from node.gateway.callers.places import Places
from node.metrics import Metrics
from node.watching.watcher import Watcher
from protocols.errors import SwarmError
from swarm.bans import Bans
from swarm.tasks import Tasks

log = logging.getLogger(__name__)

LIST_AGAIN_S = 5.0
"""Between two looks at what the swarm serves."""

WRITE_SPENT_S = 5.0
"""Seconds between two writes of what keys have used."""

OPEN_AGAIN_S = 5.0
"""Seconds until a model that could not be opened is tried again."""


class Gateway:
    """The models, and the places for requests. `async with` opens the models in a task, and closes them at its end."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.models = Models(config.models, config.open)
        self.places = Places(config.max_requests, config.max_waiting, config.wait_s)
        self.accounts, self.metrics = Accounts(config.keys, config.clock), Metrics()
        self.clock = config.clock
        self.started_s = self.clock.unix_s()
        self._tasks = Tasks()
        self.all_open = asyncio.Event()
        """Set when all models that were named are open; if none was named, when the first names of the swarm's models are known."""
        self.is_warm = asyncio.Event()
        """Set when all is imported that visitors of the page need, too."""
        self.dashboard = self._dashboard()
        self.metrics.read_from(metrics.RUNNING, lambda: self.places.num_taken)
        self.metrics.read_from(metrics.WAITING, lambda: self.places.num_waiting)
        self.metrics.read_from(metrics.OPEN_MODELS, lambda: self.models.num_open)

    async def __aenter__(self) -> Self:
        work = self._open_all() if self.config.models else self._follow_swarm()
        self._tasks.keep(work, "opening models")
        self._tasks.keep(self._keep_accounts(), "keeping what keys have used")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dashboard.close()
        await self._tasks.stop()
        await self.models.close()
        await self.accounts.keep()
        await asyncio.to_thread(self.config.traces.flush)  # SIGTERM ends the process soon after

    def keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run this in a task of the gateway, which is cancelled at the gateway's end."""
        self._tasks.keep(work, name)

    async def _keep_accounts(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SPENT_S)
            await self.accounts.keep()

    def _dashboard(self) -> Dashboard:
        config = self.config
        watcher = Watcher(config.meet, config.models, config.clock, Failovers(self.models).look)
        return Dashboard(
            watcher=watcher, swarm=config.swarm, hosting=config.hosting, operating=self._operating(watcher),
            check_key=self.accounts.is_known, runs_folder=config.runs, may_read_directories=lambda: not self.accounts.needs_key,
        )  # fmt: skip

    def _operating(self, watcher: Watcher) -> PageOrders | None:
        config = self.config
        if config.operator is None:
            return None
        bans = config.entry.bans or Bans()
        return PageOrders(config.operator, config.reach(), bans, self.accounts, watcher, config.clock)

    async def _open_all(self) -> None:
        """Open the models before the first request, until all are open."""
        for name in self.models.names:
            while self.models.opened(name) is None:
                try:
                    await self.models.get(name)
                except SwarmError as error:
                    log.warning("%s is not open yet: %s", name, error)
                    await asyncio.sleep(OPEN_AGAIN_S)
        self.all_open.set()

    async def _follow_swarm(self) -> None:
        """List again and again what the swarm serves. A model is opened by its first request."""
        while True:
            try:
                async with self.config.listing() as listing:
                    while True:
                        self.models.hear(await listing())
                        if self.models.names:
                            self.all_open.set()
                        await asyncio.sleep(LIST_AGAIN_S)
            except SwarmError as error:
                log.warning("the swarm's models cannot be listed: %s", error)
                await asyncio.sleep(OPEN_AGAIN_S)

    @property
    def is_well(self) -> bool:
        """Every model that was named is open; if none was, there is at least one."""
        return all(map(self.models.opened, self.config.models)) and self.all_open.is_set()
