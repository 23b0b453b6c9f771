"""One answer of the chat: its text, its route and timings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from nicegui import ui

from node.dashboard.pages.tables import table
from node.dashboard.talk import Report, Said
from node.watching.changes import label
from node.watching.watcher import Watcher
from protocols.words import counted

PART_LETTERS = 600
"""Of a text that grows, only its last part is sent anew; a part that has so many letters is closed."""

EVERY_S = 0.1
"""Between two times that the browser is told what has come."""


class GrowingText:
    """A text of which only the last part is sent anew."""

    def __init__(self, box: ui.element) -> None:
        """box: where its parts are put."""
        self.text = ""
        self._box, self._shown = box, 0
        self._begin()

    def show(self) -> None:
        """What has come to `text` since the last call."""
        while self._shown < len(self.text):
            more = self.text[self._shown : self._shown + PART_LETTERS - len(self._part_text)]
            self._shown += len(more)
            self._part_text += more
            self._part.set_text(self._part_text)
            if len(self._part_text) >= PART_LETTERS:
                self._begin()

    def _begin(self) -> None:
        self._part_text = ""
        with self._box:
            self._part = ui.label().classes("mm-part")


class AnswerView:
    """`hear` once, within the page that it was made in."""

    def __init__(self, model: str, watcher: Watcher) -> None:
        self.report: Report | None = None
        self._watcher = watcher
        self._stopping = asyncio.Event()
        with ui.element("article").classes("mm-message mm-model-said") as self._box:
            ui.label(model).classes("mm-who")
            self._before = ui.element("div")
            self._thoughts: GrowingText | None = None
            self._said = GrowingText(ui.element("div").classes("mm-said"))
            self._told = ui.label("waits for the first token").classes("mm-quiet").props('role="status"')

    @property
    def text(self) -> str:
        """What has come of it, without thoughts."""
        return self._said.text

    @property
    def told(self) -> str:
        """What stands below its text."""
        return str(self._told.text)

    def stop(self) -> None:
        """End it; what has come stays."""
        self._stopping.set()

    def refused(self, why: str) -> None:
        """There is no answer, or no more of it."""
        self._show()
        self._told.set_text(why)
        self._told.classes("mm-bad").props('role="alert"')

    async def hear(self, answer: AsyncGenerator[Said | Report, None]) -> None:
        """Show it as it comes, until its end or `stop`. What the generator raises is raised."""
        hearing = asyncio.create_task(self._take(answer))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not hearing.done() and not stopping.done():
                await asyncio.wait((hearing, stopping), timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                self._show()
            if hearing.done():
                hearing.result()
            else:
                self._told.set_text("stopped")
        finally:
            for task in (hearing, stopping):
                task.cancel()
            await asyncio.gather(hearing, stopping, return_exceptions=True)
            self._show()

    async def _take(self, answer: AsyncGenerator[Said | Report, None]) -> None:
        began_s = 0.0
        async with aclosing(answer) as events:
            async for event in events:
                if isinstance(event, Report):
                    self._report(event)
                    continue
                now_s = asyncio.get_running_loop().time()
                began_s = began_s or now_s
                (self._thoughts_shown() if event.is_thought else self._said).text += event.text
                speed = f", {(event.num_tokens - 1) / (now_s - began_s):.1f} tokens/s" if now_s > began_s else ""
                self._told.set_text(f"{counted(event.num_tokens, 'token')}{speed}")

    def _show(self) -> None:
        self._said.show()
        if self._thoughts is not None:
            self._thoughts.show()

    def _thoughts_shown(self) -> GrowingText:
        """Folded away, above the text."""
        if self._thoughts is None:
            with self._before, ui.element("details").classes("mm-timings"):
                with ui.element("summary"):
                    ui.label("Thoughts")
                self._thoughts = GrowingText(ui.element("div").classes("mm-thoughts"))
        return self._thoughts

    def _report(self, report: Report) -> None:
        self.report = report
        self._show()  # the last letters come before what is said of them
        speed = f", {report.tokens_per_s:.1f} tokens/s" if report.tokens_per_s else ""
        lost = f"; {counted(report.num_replaced, 'node')} lost on the way, and replaced" if report.num_replaced else ""
        asked = f"{counted(report.num_prompt, 'token')} read, {counted(report.num_new, 'token')} answered"
        self._told.set_text(f"{asked}{speed}; first after {report.first_s * 1e3:.0f} ms{lost}")
        with self._box, ui.element("details").classes("mm-timings"):
            with ui.element("summary"):
                ui.label("Route and timings")
            self._route(report)
            _stages(report)

    def _route(self, report: Report) -> None:
        records = self._watcher.look.records
        names: dict[str, str] = {record.peer: record.name for record in records.values()}
        rows = [
            (label(names.get(hop.peer, ""), hop.peer), hop.blocks.rpartition("/")[2], str(hop.num_steps), f"{hop.queue_ms:.1f}",
             f"{hop.compute_ms:.1f}")
            for hop in report.hops
        ]  # fmt: skip
        table("Route, in its order", ("node", "blocks", "steps", "queued, ms", "computed, ms"), rows, num_texts=2)


def _stages(report: Report) -> None:
    rows = [(f"{name} {meaning}", f"{prompt:.2f}", f"{later:.2f}") for name, meaning, prompt, later in report.stages]
    table("Where the time went", ("stage", "prompt, ms", "each later token, ms"), rows)
