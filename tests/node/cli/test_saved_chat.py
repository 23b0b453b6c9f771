"""What a chat keeps: the history of a person, and saved conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node.cli.ask import saved_chat
from node.cli.ask.conversation import Conversation, Manner
from node.cli.terminal.line_editor import MAX_KEPT, TextHistory
from protocols.errors import BadRequestError, ConfigError

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi\nthere"}]


@pytest.mark.parametrize(
    "document",
    [
        *("{", "[]", '"x"', "null", '{"format": "murmuration chat 1"}', "[" * 100_000),
        *({"messages": [{"role": "robot", "content": "x"}]}, {"messages": MESSAGES[1:]}, {"messages": [{"role": "user"}]}),
        *({"messages": [*MESSAGES, MESSAGES[0]]}, {"format": "murmuration chat 2"}, {"model": 3}, {"messages": [MESSAGES]}),
        {"messages": [{"role": "user", "content": ["x"]}, MESSAGES[1]]},
    ],
    ids=range(14),
)
def test_what_is_no_saved_chat_is_refused_and_never_overwritten(document: str | dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    whole = {"format": saved_chat.FORMAT, "model": "tiny", "messages": MESSAGES}
    file.write_text(before := document if isinstance(document, str) else json.dumps(whole | document))
    with pytest.raises(BadRequestError, match="is no saved chat: expected what /save FILE writes"):
        saved_chat.load(file)
    with pytest.raises(BadRequestError, match="choose another name"):
        saved_chat.save(file, "tiny", [])
    assert file.read_text() == before


def test_a_chat_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    file, system = tmp_path / "new" / "x.json", {"role": "system", "content": "Be brief. \x1b é"}
    saved_chat.save(file, "tiny", [system, *MESSAGES])
    saved_chat.save(file, "tiny", [system, *MESSAGES])  # one of ours is replaced
    assert saved_chat.load(file) == ("tiny", [system, *MESSAGES])
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; /save FILE writes one"):
        saved_chat.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be written"):
        saved_chat.save(Path("/proc/x.json"), "tiny", [])


def test_a_history_is_bounded_and_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "new" / "history"
    history = TextHistory(file)
    assert list(history.load_history_strings()) == []
    for number in range(2 * MAX_KEPT + 1):
        history.store_string(f"text {number}\nof two lines")
    with file.open("ab") as opened:
        opened.write(b'\xff\n{"a": 1}\n"half')
    newest = list(history.load_history_strings())
    assert newest[0] == f"text {2 * MAX_KEPT}\nof two lines" and len(newest) == MAX_KEPT
    assert len(file.read_text().splitlines()) == MAX_KEPT
    TextHistory(tmp_path).store_string("a directory cannot be written, which is no failure")


class Deaf:
    """A speaker whose session is all that matters."""

    num_forgotten = 0

    def forget(self) -> None:
        self.num_forgotten += 1


def test_loading_ends_the_session_of_what_was_said_before() -> None:
    speaker: Any = Deaf()
    conversation = Conversation(speaker, Manner(max_new_tokens=1, system="S"))
    conversation.resume(MESSAGES)
    assert conversation.messages == MESSAGES and speaker.num_forgotten == 2
