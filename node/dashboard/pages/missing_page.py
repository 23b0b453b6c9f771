"""What a visitor sees of an address that is no page."""

from __future__ import annotations

from nicegui import Client, app, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from node.dashboard.pages.frame import frame
from node.dashboard.pages.visit import is_part

TEXT = "there is no page at this address; the ones that there are stand above"


def register() -> None:
    """In place of NiceGUI's own, which leads nowhere and writes a warning to the log."""
    app.add_exception_handler(404, _answer)


async def _answer(request: Request, _: Exception) -> Response:
    if is_part(request.scope):
        return PlainTextResponse("there is no such part of a page", 404)
    with Client(ui.page(""), request=request) as client, frame("Not found"):
        with ui.element("h1").classes("mm-h1"):
            ui.label("Not found")
        ui.label(TEXT).classes("mm-quiet")
    return client.build_response(request, 404)
