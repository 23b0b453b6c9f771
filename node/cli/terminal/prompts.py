"""A text of the command line: itself, stdin, or a file."""

from __future__ import annotations

from pathlib import Path

from node.cli.terminal import utf8
from protocols.errors import ConfigError


def chosen(prompt: str | None, file: Path | None) -> str:
    """The text of PROMPT, or of `--prompt-file`; ConfigError unless exactly one is given."""
    if file is not None and prompt is not None:
        raise ConfigError(f"the prompt is given twice: --prompt-file {file} and PROMPT {prompt[:40]!r}; leave one out")
    if file is not None:
        return utf8.read_file(file, "--prompt-file")
    if prompt is None:
        raise ConfigError("Missing argument 'PROMPT': a text, - for stdin, @FILE for a file; or --prompt-file FILE")
    return read(prompt, "the prompt")


def read(word: str, what: str) -> str:
    """`-` is what stdin holds, `@FILE` what a file holds, each without its last line end; `@@text` is `@text`; anything else is itself."""
    if word == "-":
        return utf8.read_stdin(f"{what} (stdin)")
    if word.startswith("@@"):
        return word[1:]
    if word.startswith("@") and len(word) > 1:
        return utf8.read_file(Path(word[1:]).expanduser(), what)
    return word
