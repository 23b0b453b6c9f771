"""Every failure as one line and an exit code.

The line is `error: what, got, expected, next step`.

The codes are the contract with scripts (docs/commands.md); each typed error carries its own in `protocols/errors.py`.
"""

from __future__ import annotations

import errno
import resource

import typer

from protocols.errors import SwarmError

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "a fault of ours, or of the system (disk, permissions)",
    2: "a flag or a request that makes no sense, a port that is taken, or no memory for what was asked",
    3: "refused for what a peer is: its identity, the swarm's key, a list (--allow, --deny), or the protocol version",
    4: "the model: unknown, other weights, not supported, or a damaged file",
    5: "a node refused: not its blocks, session gone, memory or queue full, leaving",
    6: "a peer is unreachable, or did not answer in time",
    7: "no live nodes cover the model",
    130: "stopped by Ctrl-C",
    141: "the reader of our output has gone",
}

NO_MEMORY = "out of memory; free some, host fewer blocks (--num-blocks) or ask for fewer tokens"

_TYPERS_OWN = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The root of typer's usage errors, which typer itself does not export (it is click's before typer 0.27)."""


def describe(error: BaseException) -> tuple[str, int]:
    """(what to say, exit code). The text is one line; empty if nothing needs to be said."""
    match error:
        case KeyboardInterrupt() | typer.Abort():
            return "", 130
        case BrokenPipeError():
            return "", 141
        case SwarmError():
            return _one_line(str(error) or error.code), error.exit_code
        case ImportError() | OSError() | SystemError() if _is_want_of_memory(error):
            return NO_MEMORY, 2
        case OSError():
            where = f": {error.filename}" if error.filename else ""
            return _one_line(f"{error.strerror or error}{where}; {_next_step(error)}"), 1
        case MemoryError():
            return NO_MEMORY, 2
    if isinstance(error, _TYPERS_OWN):
        return _usage(error)
    return _one_line(
        f"unexpected {type(error).__name__}: {error}; this is a fault of ours: run again with --debug and report it"
    ), 1


def _next_step(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return "free some space there, or name another folder (--data-dir, --out)"
    return "check that the file or address is right and allowed"


def _is_want_of_memory(error: BaseException) -> bool:
    """How a limit on memory shows while libraries are loaded: in the loader's words, or as ENOMEM."""
    said = str(error).lower()
    if isinstance(error, SystemError):  # a C library that does not check its own allocations
        return "without exception set" in said and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return getattr(error, "errno", None) == errno.ENOMEM or any(words in said for words in _LOADERS_WORDS)


def first_cause(error: BaseException) -> BaseException:
    """What a TaskGroup wrapped: the first typed error in it, else the first of all."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    inner = [first_cause(one) for one in error.exceptions]
    return next((one for one in inner if isinstance(one, SwarmError)), inner[0])


_LOADERS_WORDS = (
    "cannot allocate",
    "failed to map segment",
    "cannot map zero-fill pages",
    "cannot create shared object descriptor",
    "cannot apply additional memory protection",
)
"""glibc's ld.so, when a library does not fit; Python wraps them as ImportError or OSError."""


def _usage(error: BaseException) -> tuple[str, int]:
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "swarm")
    said: str = error.format_message() if hasattr(error, "format_message") else str(error)
    option = getattr(error, "option_name", None)
    if option and said.startswith("No such option"):
        nearest = next(iter(getattr(error, "possibilities", None) or ()), None)
        said = f"unknown option {option}" + (f": did you mean {nearest}?" if nearest else "")
    if said.startswith("Missing command"):
        named = getattr(getattr(getattr(error, "ctx", None), "command", None), "commands", {})
        said = f"Missing command: {', '.join(named)}" if named else said
    see = f"see {command} --help"
    return _one_line(f"{said} {see}" if said.endswith("?") else f"{said.rstrip('.')}; {see}"), int(getattr(error, "exit_code", 2))


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
