"""How a person pauses training: SIGUSR1, and the key p."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from types import TracebackType
from typing import Self

from node.cli.terminal import keys
from node.events import Event, OnEvent
from node.runs.stage.pause_switch import PauseSwitch
from node.train_hours import TrainHours


class Switching:
    """`with` it in the event loop of the node; keys are read from `ready` to `leaving`, so that questions before them get their answers."""

    def __init__(self, hours: TrainHours | None) -> None:
        self.switch = PauseSwitch(hours)
        self._keys = contextlib.ExitStack()

    def heard(self, on_event: OnEvent) -> OnEvent:
        """The same, and it follows what the node says."""

        def hear(event: Event) -> None:
            on_event(event)
            if event.kind == "ready":
                self._keys.enter_context(keys.typed(self._press))
            elif event.kind == "leaving":
                self._keys.close()

        return hear

    def _press(self, key: str) -> None:
        if key == "p":
            self.switch.toggle()

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.switch.toggle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._keys.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
