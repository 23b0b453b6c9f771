"""`swarm chat`: each text is a command or a turn.

Texts come from a person at a terminal, or as lines from a script.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.ask import saved_chat
from node.cli.ask.conversation import Conversation, Manner
from node.cli.ask.speaking import open_speaker
from node.cli.flags.asking import ClientSettings, Sampling
from node.cli.terminal import stopping, utf8
from node.cli.terminal.console import remark
from node.cli.terminal.interruption import Interruption
from protocols.errors import BadRequestError, SwarmError
from protocols.words import counted
from swarm import places

if TYPE_CHECKING:
    from node.cli.terminal.line_editor import LineEditor

HISTORY = "chat_history"
"""File in the data directory."""

COMMANDS = {
    "/help": "says this",
    "/save FILE": "writes the conversation to a file",
    "/load FILE": "goes on with a conversation from such a file",
    "/reset": "forgets the conversation",
    "/exit": "leaves, as Ctrl-D does",
}
WORDS = tuple(line.split()[0] for line in COMMANDS)
ELSE = (
    "anything else is said to the model; //text says /text",
    "Enter sends; Alt-Enter, or Enter behind a \\, begins a new line",
    "the arrow keys bring earlier texts back; Tab completes commands",
    "Ctrl-C stops an answer; pressed twice, it leaves",
)


def run(asking: ClientSettings, sampling: Sampling, manner: Manner, is_thin: bool, keeps_history: bool = True) -> None:
    """Read texts from stdin, answer each; ends with /exit or the end of stdin."""
    interruption = Interruption() if sys.stdin.isatty() else None
    utf8.as_bytes_with_escapes()
    with open_speaker(asking, sampling, is_thin) as speaker:
        conversation = Conversation(speaker, manner, interruption)
        if interruption:
            remark(f"chatting with {asking.model}: /help for help, Ctrl-C stops an answer, Ctrl-D leaves")
        for text in texts(interruption, editor(asking.data_dir, keeps_history) if interruption else None):
            try:
                if text.strip() == "/exit":
                    return
                obey(conversation, text, asking.model)
            except SwarmError as error:  # a person may try again, the past is still here; a script wants the exit code
                if interruption is None:
                    raise
                remark(f"error: {error} (/reset starts over)")
            except KeyboardInterrupt:
                if interruption is None or interruption.is_leaving or stopping.is_stopping():
                    raise
                remark("stopped before it was asked")  # it came in the moment between the prompt and the question


def editor(data_dir: Path | None, keeps_history: bool) -> LineEditor:
    """What a person types with."""
    from node.cli.terminal.line_editor import LineEditor

    return LineEditor((data_dir or places.data_dir()) / HISTORY if keeps_history else None, WORDS)


def obey(conversation: Conversation, text: str, model: str) -> None:
    """Do what a text says: a command, or something for the model."""
    utf8.checked("the line" if "\n" not in text else "the text", text)
    word, _, rest = text.strip().partition(" ")
    file = Path(rest.strip()).expanduser()
    if not word.startswith("/") or word.startswith("//"):
        conversation.say(text.strip()[1:] if word.startswith("//") else text)
    elif "\n" in text.strip() or (rest.strip() if word not in ("/save", "/load") else not rest.strip()):
        raise unfit(word)
    elif word == "/reset":
        conversation.reset()
        remark("the conversation is forgotten")
    elif word == "/help":
        say_help()
    elif word == "/save":
        saved_chat.save(file, model, conversation.messages)
        remark(f"saved {_turns(conversation)} in {file}")
    elif word == "/load":
        before, messages = saved_chat.load(file)
        conversation.resume(messages)
        remark(f"goes on after {_turns(conversation)} of {file}{'' if before == model else f', which were with {before}'}")
    else:
        raise unfit(word)


def _turns(conversation: Conversation) -> str:
    return counted(sum(one["role"] == "user" for one in conversation.messages), "turn")


def say_help() -> None:
    """A line for each command, then what else there is to know."""
    for line, what in COMMANDS.items():
        remark(f"{line:<11} {what}")
    for line in ELSE:
        remark(line)


def unfit(command: str) -> BadRequestError:
    """Of a text that begins with `/`, and is none of the commands."""
    if command in WORDS:
        form = next(line for line in COMMANDS if line.split()[0] == command)
        alone = f"{command} stands alone on its line" if form == command else f"{command} needs a file: {form}"
        return BadRequestError(f"{alone}; /{command} says {command} to the model")
    nearest = difflib.get_close_matches(command, WORDS, 1, 0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    shown = command[:40]
    return BadRequestError(f"unknown command {shown!r}: {hint}/help lists them, and /{shown} says {shown} to the model")


def texts(interruption: Interruption | None, editor: LineEditor | None) -> Iterator[str]:
    """What the person says, without blank texts. On a terminal, a second Ctrl-C at the prompt leaves."""
    while True:
        try:
            text = editor.ask() if editor else input()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interruption is None or interruption.at_prompt():
                raise
            remark("Ctrl-C again, Ctrl-D or /exit leaves")
            continue
        if text.strip():
            if interruption:
                interruption.has_spoken()
            yield text
