"""The page without a gateway, for a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from node.dashboard.dashboard import Dashboard
from node.gateway import page
from node.gateway.answers.config import GatewayConfig
from node.gateway.callers.accounts import Accounts
from node.gateway.callers.page_orders import PageOrders
from node.gateway.http.limits import Limits
from node.watching.watcher import Watcher

MAX_BODY_BYTES = 1 << 20
"""Of a request; a page's own are small."""


def create_page_app(config: GatewayConfig, *, is_loopback: bool = True) -> FastAPI:
    """The page of the swarm that `config` names, with its keys; models, places and budgets of `config` do not matter."""
    accounts = Accounts(config.keys, config.clock)
    watcher = Watcher(config.meet, config.models, config.clock)
    operating = None
    if config.operator is not None:
        operating = PageOrders(config.operator, config.reach(), None, accounts, watcher, config.clock)
    dashboard = Dashboard(
        watcher=watcher, swarm=config.swarm, hosting=config.hosting, operating=operating,
        check_key=accounts.is_known, runs_folder=config.runs,
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await dashboard.close()

    app = FastAPI(title="Murmuration", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Limits, max_body_bytes=MAX_BODY_BYTES, is_loopback=is_loopback)
    page.mount(app, dashboard)
    return app
