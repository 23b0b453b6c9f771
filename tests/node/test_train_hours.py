"""Hours in which a node trains."""

from __future__ import annotations

from datetime import time

import pytest

from node.train_hours import TrainHours
from protocols.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("23-7", ["23:00", "00:00", "06:59"], ["22:59", "07:00", "12:00"]),
        ("9-17", ["09:00", "16:59"], ["08:59", "17:00", "00:00"]),
        ("22:30-6:15", ["22:30", "06:14"], ["22:29", "06:15"]),
        ("18-24", ["18:00", "23:59"], ["17:59", "00:00"]),
    ],
)
def test_hours_begin_with_their_first_minute_and_end_before_their_last(text: str, inside: list[str], outside: list[str]) -> None:
    hours = TrainHours.parse(text)
    assert [now for now in inside if not hours.include(time.fromisoformat(now))] == []
    assert [now for now in outside if hours.include(time.fromisoformat(now))] == []


@pytest.mark.parametrize("text", ["", "23", "23-", "7-7", "0-24", "24-7", "23-25", "9:60-10", "18-24:01", "9-5pm", "9 - 17"])
def test_other_texts_are_refused_by_the_name_of_the_flag(text: str) -> None:
    with pytest.raises(ConfigError, match="--train-hours"):
        TrainHours.parse(text)


def test_hours_are_shown_in_full() -> None:
    assert str(TrainHours.parse("23-7")) == "23:00-07:00"
