"""Whatever went wrong, as one line and an exit code: `error: what, got, expected, next step`.

The codes are the contract with scripts (docs/commands.md); each typed error carries its own in `protocols/errors.py`.
"""

from __future__ import annotations

import typer

from protocols.errors import SwarmError

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "a fault of ours, or of the system (disk, permissions)",
    2: "a flag or a request that makes no sense, a port that is taken, or no memory for what was asked",
    3: "identity or protocol version refused",
    4: "the model: unknown, other weights, not supported, or a damaged file",
    5: "a node refused: not its blocks, session gone, memory or queue full, leaving",
    6: "a peer is unreachable, or did not answer in time",
    7: "no live nodes cover the model",
    130: "stopped by Ctrl-C",
    141: "whoever read our output went away",
}

_TYPERS_OWN = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The root of typer's usage errors, which typer itself does not export (it is click's before typer 0.27)."""


def describe(error: BaseException) -> tuple[str, int]:
    """(what to say, exit code). The text is one line; empty where nothing needs to be said."""
    match error:
        case KeyboardInterrupt() | typer.Abort():
            return "", 130
        case BrokenPipeError():
            return "", 141
        case SwarmError():
            return _one_line(str(error) or error.code), error.exit_code
        case OSError():
            where = f": {error.filename}" if error.filename else ""
            return _one_line(f"{error.strerror or error}{where}; check that the file or address is right and allowed"), 1
        case MemoryError():
            return "out of memory; free some, host fewer blocks (--num-blocks) or ask for fewer tokens", 2
    if isinstance(error, _TYPERS_OWN):
        return _usage(error)
    return _one_line(
        f"unexpected {type(error).__name__}: {error}; this is a fault of ours: run again with --debug and report it"
    ), 1


def first_cause(error: BaseException) -> BaseException:
    """What a TaskGroup wrapped: the first typed error in it, else the first of all."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    inner = [first_cause(one) for one in error.exceptions]
    return next((one for one in inner if isinstance(one, SwarmError)), inner[0])


def _usage(error: BaseException) -> tuple[str, int]:
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "swarm")
    said: str = error.format_message() if hasattr(error, "format_message") else str(error)
    return _one_line(f"{said.rstrip('.')}; see {command} --help"), int(getattr(error, "exit_code", 2))


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
