"""`swarm chat`: each line is a command or a turn.

Lines come from a person or a script.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator

from node.cli import utf8
from node.cli.asking import ClientSettings, Sampling
from node.cli.console import remark
from node.cli.conversation import Conversation, Manner
from node.cli.interruption import Interruption
from node.cli.speaking import open_speaker
from protocols.errors import BadRequestError, SwarmError

HELP = (
    "/reset forgets the conversation, /exit (or Ctrl-D) leaves, /help says this; Ctrl-C stops an answer; "
    "//text says /text to the model, anything else is said to it"
)
COMMANDS = ("/reset", "/exit", "/help")


def run(asking: ClientSettings, sampling: Sampling, manner: Manner, is_thin: bool) -> None:
    """Read lines from stdin, answer each; ends with /exit or the end of stdin."""
    interruption = Interruption() if sys.stdin.isatty() else None
    utf8.as_bytes_with_escapes()
    with open_speaker(asking, sampling, is_thin) as speaker:
        conversation = Conversation(speaker, manner, interruption)
        if interruption:
            remark(f"chatting with {asking.model}; {HELP}")
        for line in lines(interruption):
            try:
                if line.strip() == "/exit":
                    return
                obey(conversation, line)
            except SwarmError as error:  # a person may try again, the past is still here; a script wants the exit code
                if interruption is None:
                    raise
                remark(f"error: {error} (/reset starts over)")


def obey(conversation: Conversation, line: str) -> None:
    """Do what a line says: a command, or something for the model."""
    utf8.checked("the line", line)
    word = line.strip()
    if word == "/reset":
        conversation.reset()
    elif word == "/help":
        remark(HELP)
    elif word.startswith("/") and not word.startswith("//"):
        raise unknown(word.split()[0])
    else:
        conversation.say(word[1:] if word.startswith("//") else line)


def unknown(command: str) -> BadRequestError:
    """Of a line that begins with `/`."""
    if command in COMMANDS:
        return BadRequestError(f"{command} stands alone on its line; /{command} says {command} to the model")
    nearest = difflib.get_close_matches(command, COMMANDS, 1, 0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    shown = command[:40]
    return BadRequestError(f"unknown command {shown!r}: {hint}/help lists them, and /{shown} says {shown} to the model")


def lines(interruption: Interruption | None) -> Iterator[str]:
    """What the person says, without blank lines. On a terminal, a second Ctrl-C at the prompt leaves."""
    if interruption:
        import readline  # noqa: F401  (arrow keys and history for `input`)
    while True:
        try:
            line = input("> ") if interruption else input()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interruption is None or interruption.at_prompt():
                raise
            print(flush=True)
            remark("Ctrl-C again, Ctrl-D or /exit leaves")
            continue
        if line.strip():
            if interruption:
                interruption.has_spoken()
            yield line
