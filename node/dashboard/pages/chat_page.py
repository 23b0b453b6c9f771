"""The chat: a conversation with a model of the swarm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nicegui import ui
from nicegui.elements.mixins.value_element import ValueElement

from node.dashboard.dashboard import Dashboard
from node.dashboard.kept_chat import KeptChat, parse_kept, tag_of
from node.dashboard.pages.answer_view import AnswerView
from node.dashboard.pages.frame import button, frame
from node.dashboard.pages.visit import dashboard_here, keep_up, visitor_here
from node.dashboard.talk import Question, Talk, TalkRefusedError

SCRIPT = Path(__file__).with_name("kept_chat.js").read_text()

GIVEN_BACK_S = 5.0
"""How long the browser may take to give back what it keeps; then the page is empty."""

MAX_TURNS = 200
"""Messages of one conversation that are sent again with each question."""

SETTINGS: tuple[tuple[str, str, float, float, float], ...] = (
    ("temperature", "temperature", 0.0, 2.0, 0.1),
    ("top_p", "top p", 0.01, 1.0, 0.05),
    ("top_k", "top k", 1, 1_000, 1),
    ("seed", "seed", 0, 2**31, 1),
    ("max_tokens", "most tokens", 1, 4_096, 1),
)
"""Name in OpenAI's API, label, least and largest value, and step."""

MAX_LETTERS = 100_000
"""Of one message: the browser keeps to it, and so must a program that takes its place."""

MAX_SHOWN = 100
"""Messages that stay on the page: they lie in the gateway's memory, too."""

WHOLE = frozenset(("top_k", "seed", "max_tokens"))


def register() -> None:
    """Give the page its address."""
    ui.page("/chat")(show)


def show() -> None:
    """Build the page for one visitor."""
    with frame("Chat"):
        dashboard = dashboard_here()
        with ui.element("h1").classes("mm-only-read"):
            ui.label("Chat with a model of the swarm")
        if dashboard.talk is None:
            ui.label("This node answers no questions itself. Start a gateway: swarm serve, or swarm up MODEL").classes("mm-card")
            return
        ui.add_body_html(f"<script>{SCRIPT}</script>")
        Chat(dashboard, dashboard.talk)


class Chat:
    """One visitor's conversation."""

    def __init__(self, dashboard: Dashboard, talk: Talk) -> None:
        self._dashboard, self._talk, self._visitor = dashboard, talk, visitor_here()
        self._turns: list[tuple[str, str]] = []
        self._answer: AnswerView | None = None
        self._model, self._settings = self._draw_settings()
        self._log = ui.element("div").classes("mm-log").props('role="log" aria-label="Conversation" tabindex="0"')
        with ui.element("div").classes("mm-ask"):
            self._text = ui.textarea("Your message").props(f"outlined autogrow maxlength={MAX_LETTERS}").classes("mm-text")
            self._text.on("keydown.enter", self._entered, js_handler=_ENTER)
            with ui.element("div").classes("mm-buttons"):
                self._send = button("Send", self._ask)
                self._stop = button("Stop", self._end)
                button("New conversation", self._begin_anew).classes("mm-plain")
        self._told = ui.label().classes("mm-quiet").props('role="status"')
        self._show_buttons()
        self._client = ui.context.client
        self._client.on_disconnect(self._end)
        keep_up(self._refresh_names, 1.0)
        ui.timer(0.0, self._restore, once=True)

    def _draw_settings(self) -> tuple[ui.select, Mapping[str, ValueElement[float | None]]]:
        with ui.element("section").classes("mm-card mm-settings").props('aria-label="Settings"'):
            names = list(self._talk.names())
            model = ui.select(names, label="model", value=names[0] if names else None).props("outlined dense").classes("mm-model")
            system = ui.input("system prompt").props("outlined dense maxlength=20000").classes("mm-system")
            self._system = system
            return model, {
                name: ui.number(label, min=low, max=high, step=step, value=None).props("outlined dense clearable")
                for name, label, low, high, step in SETTINGS
            }

    def _refresh_names(self) -> None:
        names = list(self._talk.names())
        if names != self._model.options:
            self._model.set_options(names, value=self._model.value if self._model.value in names else next(iter(names), None))

    def _entered(self) -> None:
        if self._answer is None:
            self._ask()

    def _ask(self) -> None:
        text = str(self._text.value or "").strip()[:MAX_LETTERS]
        if not text or self._answer is not None or not self._model.value:
            return
        self._turns = [*self._turns, ("user", text)][-MAX_TURNS:]
        self._text.set_value("")
        with self._log:
            _message("You", "mm-user", text)
            self._answer = AnswerView(self._model.value, self._dashboard.watcher)
        self._bound_log()
        self._keep("user", text)
        instruction = str(self._system.value or "")[:MAX_LETTERS]
        system = (("system", instruction),) if instruction else ()
        ask = Question(model=self._model.value, messages=(*system, *self._turns), settings=self._chosen())
        ui.run_javascript(TO_THE_END)
        self._dashboard.tasks.keep(self._hear(ask, self._answer), "a chat's answer")
        self._show_buttons()

    def _bound_log(self) -> None:
        for old in self._log.default_slot.children[:-MAX_SHOWN]:
            self._log.remove(old)

    # --- what the browser keeps

    async def _restore(self) -> None:
        """Go on with what this tab has kept, unless the visitor has asked something already."""
        try:
            given = await ui.run_javascript(
                f"return window.mmChat.begin({json.dumps(tag_of(self._visitor))})", timeout=GIVEN_BACK_S
            )
        except TimeoutError:
            return
        kept = parse_kept(given)
        if self._turns or self._answer is not None or not kept.turns:
            return
        self._turns = [(turn.role, turn.text) for turn in kept.turns]
        with self._log:
            for turn in kept.turns[-MAX_SHOWN:]:
                is_user = turn.role == "user"
                _message("You" if is_user else kept.model, "mm-user" if is_user else "mm-model-said", turn.text, turn.told)
        self._set(kept)
        ui.run_javascript(TO_THE_END)

    def _set(self, kept: KeptChat) -> None:
        if kept.model in self._model.options:
            self._model.set_value(kept.model)
        self._system.set_value(kept.system)
        for name, _, low, high, _ in SETTINGS:
            if low <= kept.settings.get(name, low - 1) <= high:
                self._settings[name].set_value(kept.settings[name])

    def _keep(self, role: str, text: str, told: str = "") -> None:
        settings = {"model": self._model.value, "system": self._system.value or "", "settings": self._chosen()}
        self._browser(f"add({', '.join(map(json.dumps, (role, text, told, settings)))})")

    def _browser(self, call: str) -> None:
        """Nothing happens if the visitor has gone."""
        if self._client.has_socket_connection:
            self._client.run_javascript(f"window.mmChat.{call}")

    def _chosen(self) -> dict[str, float | int]:
        given = {name: field.value for name, field in self._settings.items() if field.value is not None}
        return {name: int(value) if name in WHOLE else float(value) for name, value in given.items()}

    async def _hear(self, ask: Question, answer: AnswerView) -> None:
        try:
            await answer.hear(self._talk.answer(ask, self._visitor))
        except TalkRefusedError as error:
            answer.refused(str(error))
        finally:
            if answer.report is not None and answer.report.tokens_per_s:
                self._dashboard.estimates.measured[ask.model] = answer.report.tokens_per_s
            if self._answer is answer:  # else another conversation has begun
                self._answer = None
                self._note(answer)
                self._show_buttons()

    def _note(self, answer: AnswerView) -> None:
        """What has come of it belongs to the conversation."""
        if answer.text.strip():
            self._turns = [*self._turns, ("assistant", answer.text)]
            self._keep("assistant", answer.text, answer.told)
        else:
            self._turns = self._turns[:-1]
            self._browser("take()")

    def _end(self) -> None:
        if self._answer is not None:
            self._answer.stop()

    def _begin_anew(self) -> None:
        self._end()
        self._answer, self._turns = None, []
        self._log.clear()
        self._browser("clear()")
        self._show_buttons()

    def _show_buttons(self) -> None:
        is_busy = self._answer is not None
        self._send.props(remove="disabled") if not is_busy else self._send.props("disabled")
        self._stop.props("disabled") if not is_busy else self._stop.props(remove="disabled")
        self._told.set_text("answering; leaving this page ends the answer" if is_busy else "")


TO_THE_END = "window.scrollTo({ top: document.body.scrollHeight })"

_ENTER = "(event) => { if (!event.shiftKey && !event.isComposing) { event.preventDefault(); emit(); } }"
"""Enter sends, and Shift with Enter begins a line."""


def _message(who: str, classes: str, text: str, told: str = "") -> None:
    with ui.element("article").classes(f"mm-message {classes}"):
        ui.label(who).classes("mm-who")
        ui.label(text).classes("mm-said")
        if told:
            ui.label(told).classes("mm-quiet")
