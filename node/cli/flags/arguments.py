"""Words of a command line that may stand anywhere in it.

They are taken out before typer reads the rest.
"""

from __future__ import annotations

from pathlib import Path

from protocols.errors import ConfigError

LOG_FORMAT = "--log-format"
FORMATS = ("auto", "text", "json")


def without_debug(given: list[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before `--`: people add it at the end of the line that failed."""
    end = given.index("--") if "--" in given else len(given)
    rest = [word for word in given[:end] if word != "--debug"] + given[end:]
    return rest, len(rest) < len(given)


def without_config(given: list[str]) -> tuple[list[str], Path | None]:
    """`--config FILE` may stand anywhere before `--`, too."""
    end = given.index("--") if "--" in given else len(given)
    at = next((at for at, word in enumerate(given[:end]) if word == "--config" or word.startswith("--config=")), None)
    if at is None:
        return given, None
    _, _, joined = given[at].partition("=")
    words = 1 if joined else 2
    file = joined or next(iter(given[at + 1 : end]), "")
    if not file:
        raise ConfigError("--config needs the name of a TOML file; `swarm config --example` prints one")
    return given[:at] + given[at + words :], Path(file)


def without_log_format(given: list[str]) -> tuple[list[str], str | None]:
    """`--log-format FORMAT` may stand anywhere before `--`, too."""
    end = given.index("--") if "--" in given else len(given)
    at = next((at for at, word in enumerate(given[:end]) if word == LOG_FORMAT or word.startswith(f"{LOG_FORMAT}=")), None)
    if at is None:
        return given, None
    _, _, joined = given[at].partition("=")
    form = joined or next(iter(given[at + 1 : end]), "")
    if form not in FORMATS:
        raise ConfigError(f"{LOG_FORMAT} is one of {', '.join(FORMATS)}, got {form[:40]!r}")
    return given[:at] + given[at + (1 if joined else 2) :], form


def without_fields(given: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Of a node: fields of its run, `--section.field VALUE`. No flag has a dot; `swarm train` takes them as they are."""
    if given[:1] != ["node"]:
        return given, ()
    rest, fields = list[str](), list[str]()
    left = list(given)
    while left and left[0] != "--":
        word = left.pop(0)
        name, joined, _ = word.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(word)
            continue
        fields += [word] if joined else [word, *left[:1]]
        left = left if joined else left[1:]
    return rest + left, tuple(fields)
