"""What-if: where a model would be hosted, and how fast."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path

from nicegui import ui

from node.dashboard.dashboard import Dashboard
from node.dashboard.pages.elements import GridElement
from node.dashboard.pages.frame import button, frame, heading
from node.dashboard.pages.tables import fact_list, table
from node.dashboard.pages.visit import dashboard_here, home_here, keep_up, visitor_here
from node.dashboard.talk import Question, Report, TalkRefusedError
from node.watching import sizes
from node.watching.grid import Bar, Grid, Row, replicas_of
from node.watching.what_if import Prediction, Sizes, as_served
from protocols.errors import SwarmError
from protocols.words import one_line

MEASURED_TOKENS = 32
"""Tokens of the answer that measures a model's speed."""

MAX_BLOCKS, MAX_BILLIONS, MAX_BYTES_EACH = 1_000, 10_000, 8
MAX_NAME = 200


def register() -> None:
    """Give the page its address."""
    ui.page("/what-if")(show)


def show() -> None:
    """Build the page for one visitor."""
    with frame("What-if"):
        with ui.element("h1").classes("mm-only-read"):
            ui.label("What if these machines hosted another model?")
        WhatIf(dashboard_here(), home_here())


class WhatIf:
    """One visitor's questions."""

    def __init__(self, dashboard: Dashboard, home: str) -> None:
        self._dashboard, self._home, self._visitor = dashboard, home, visitor_here()
        self._served_section()
        with ui.element("section").classes("mm-card").props('aria-label="Another model"'):
            heading("Another model on these machines")
            self._size_form()
            self._name_form()
            if dashboard.may_read_directories():
                self._directory_form()
            self._told = ui.label().classes("mm-problem").props('role="status"')
        self._result = ui.element("div")
        keep_up(self._refresh, 1.0)

    # --- a model that is served

    def _served_section(self) -> None:
        with ui.element("section").classes("mm-card").props('aria-label="Served now"'):
            heading("Models that are served: predicted and measured")
            with ui.element("div").classes("mm-settings"):
                self._model = ui.select([], label="model").props("outlined dense").classes("mm-model")
                button("Predict", self._predict_served)
                if self._dashboard.talk is not None:
                    button(f"Measure with {MEASURED_TOKENS} tokens", self._measure).classes("mm-plain mm-own-width")
            self._served = ui.element("div")

    def _refresh(self) -> None:
        names = list(dict.fromkeys(rows.name for rows in self._dashboard.watcher.look.models if rows.is_meant))
        if names != self._model.options:
            kept = self._model.value if self._model.value in names else next(iter(names), None)
            self._model.set_options(names, value=kept)

    def _predict_served(self) -> None:
        look, name = self._dashboard.watcher.look, self._model.value
        rows = next((one for one in look.models if one.name == name and one.is_meant), None)
        self._served.clear()
        if rows is None:
            return
        predicted, measured = as_served(rows.name, rows.num_blocks, look), self._dashboard.estimates.measured.get(rows.name)
        with self._served:
            facts = [
                ("predicted", _speed(predicted)),
                ("measured", f"{measured:.1f} tokens/s" if measured else "not yet: ask in the chat"),
            ]
            if measured and predicted.tokens_per_s:
                facts.append(("measured / predicted", f"{measured / predicted.tokens_per_s:.2f}"))
            fact_list(facts)
            _legs(predicted)

    async def _measure(self) -> None:
        talk, name = self._dashboard.talk, self._model.value
        if talk is None or not name:
            return
        question = Question(
            model=name, messages=(("user", "Count."),), settings={"max_tokens": MEASURED_TOKENS, "temperature": 0}
        )
        try:
            async with aclosing(talk.answer(question, self._visitor)) as events:
                async for event in events:
                    if isinstance(event, Report) and event.tokens_per_s:
                        self._dashboard.estimates.measured[name] = event.tokens_per_s
        except TalkRefusedError as error:
            ui.notify(str(error))
            return
        self._predict_served()

    # --- another one

    def _size_form(self) -> None:
        with ui.element("div").classes("mm-settings"):
            self._billions = ui.number("parameters, 10⁹", value=7, min=0.001, max=MAX_BILLIONS).props("outlined dense")
            self._blocks = ui.number("blocks", value=32, min=1, max=MAX_BLOCKS, step=1).props("outlined dense")
            self._bytes = ui.number("bytes each", value=2, min=0.1, max=MAX_BYTES_EACH).props("outlined dense")
            button("Predict", self._predict_size)

    def _name_form(self) -> None:
        with ui.element("div").classes("mm-settings"):
            self._name = (
                ui.input("name in the swarm, or Hub name").props(f"outlined dense maxlength={MAX_NAME}").classes("mm-system")
            )
            button("Predict", self._predict_name)

    def _directory_form(self) -> None:
        with ui.element("div").classes("mm-settings"):
            self._directory = (
                ui.input("directory of a checkpoint on the gateway's machine").props("outlined dense").classes("mm-system")
            )
            button("Predict", self._predict_directory)

    async def _predict_size(self) -> None:
        billions, blocks, each = self._billions.value, self._blocks.value, self._bytes.value
        if not (
            _is_within(billions, MAX_BILLIONS)
            and _is_within(blocks, MAX_BLOCKS)
            and blocks >= 1
            and _is_within(each, MAX_BYTES_EACH)
        ):
            self._say(
                f"give up to {MAX_BILLIONS} billion parameters, 1 to {MAX_BLOCKS} blocks, and up to {MAX_BYTES_EACH} bytes for each"
            )
            return
        await self._predict(sizes.of_size(billions * 1e9, int(blocks), each))

    async def _predict_name(self) -> None:
        name = str(self._name.value or "").strip()[:MAX_NAME]
        if name:
            await self._predict_found(self._dashboard.estimates.named(name))

    async def _predict_directory(self) -> None:
        assert self._dashboard.may_read_directories()
        directory = Path(str(self._directory.value or "."))
        await self._predict_found(self._dashboard.estimates.count(lambda: sizes.of_checkpoint(directory, directory.name)))

    async def _predict_found(self, counting: Awaitable[Sizes]) -> None:
        self._say("looking")
        try:
            found = await counting
        except (SwarmError, OSError) as error:
            self._say(str(error))
            return
        await self._predict(found)

    async def _predict(self, model: Sizes) -> None:
        try:
            having, prediction = await self._dashboard.estimates.predicted(model)
        except SwarmError as error:
            self._say(str(error))
            return
        self._say("" if having else "no machine to place it on: no node that answers hosts a model whose manifest is given")
        self._result.clear()
        if not having:
            return
        with self._result, ui.element("section").classes("mm-card").props('aria-label="Result"'):
            heading(f"{one_line(model.name)}: {model.num_blocks} blocks of {model.block_bytes / 1e6:,.1f} MB")
            missing = ", ".join(map(str, prediction.missing))
            fact_list([("predicted", _speed(prediction)), ("blocks without a machine", missing or "none")])
            GridElement(_grid(model, prediction), self._home)
            rows = [
                (
                    one.machine.label,
                    str(one.span or "nothing"),
                    one.reason,
                    f"{one.machine.free_bytes / 1e6:,.0f} MB: {one.machine.memory_reason}",
                )
                for one in prediction.placed
            ]
            table(
                "Who would host what, in the order in which they choose",
                ("machine", "blocks", "reason", "memory"),
                rows,
                num_texts=4,
            )
            _legs(prediction)

    def _say(self, text: str) -> None:
        self._told.set_text(one_line(text))
        self._told.set_visibility(bool(text))


def _is_within(given: object, most: float) -> bool:
    """Whether a browser's number is above 0 and not too large; a forged one may be anything."""
    return isinstance(given, int | float) and 0 < given <= most


def _speed(prediction: Prediction) -> str:
    if not prediction.legs:
        return "no route"
    return f"{prediction.tokens_per_s:.1f} tokens/s for one stream ({prediction.token_ms:.1f} ms a token)"


def _legs(prediction: Prediction) -> None:
    if prediction.legs:
        rows = [(leg.what, leg.reason, f"{leg.ms:.2f}") for leg in prediction.legs]
        table("A token's way", ("part", "reason", "ms"), rows, num_texts=2)


def _grid(model: Sizes, prediction: Prediction) -> Grid:
    rows = [
        Row(
            peer=one.machine.peer,
            label=one.machine.label,
            state="would serve",
            trip="",
            bars=(_bar(one.span.start, one.span.stop, "serving"),),
        )
        for one in prediction.placed
        if one.span is not None
    ]
    gaps = tuple(_bar(span.start, span.stop, "missing") for span in prediction.missing)
    return Grid(name=model.name, num_blocks=model.num_blocks, rows=tuple(sorted(rows, key=lambda row: row.bars[0].start)), gaps=gaps,
                replicas=replicas_of(prediction.replicas), num_hidden=0)  # fmt: skip


def _bar(start: int, stop: int, state: str) -> Bar:
    return Bar(start=start, stop=stop, state=state, level=0, text=f"blocks {start}:{stop}")
