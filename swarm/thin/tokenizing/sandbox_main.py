"""The program of a sandbox.

Loads an untrusted tokenizer, encodes, decodes and renders, within limits.

`sandbox.py` starts it and asks. A request names its own limit of processor time (`cpu_s`), after which the kernel ends the process,
whatever code runs just then; memory, processes, files and the size of an answer have limits for good.
"""

from __future__ import annotations

import base64
import contextlib
import json
import resource
import signal
import string
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError, SwarmError
from swarm import helper_process
from swarm.thin.tokenizing import encoded

MEMORY_BYTES = 2 << 30
"""Address space beside that of the libraries. A tokenizer of 262,144 tokens takes 0.5 GB while it is read."""

MAX_IDS = 1 << 24
MAX_OUTPUT = 1 << 20
"""Letters of a rendered conversation, beside eight for each that was asked."""

SAMPLE = "The quick brown fox jumps over a lazy dog, 1234 times: Grüße, 世界 🙂!\n\tdef f(x):  return x\u00a0+ 1\n" + "".join(
    letter * 32 for letter in string.printable
)
"""What a tokenizer is tried with: ordinary text, and long runs of every letter."""

_NONE_AT_ALL = (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
"""Processes and threads, bytes written to files, bytes of memory dumped after a crash."""


def main(*libraries: str) -> None:
    """Answer until the owner closes the pipe. libraries: `transformers` if it is to be imported before limits hold."""
    answers = helper_process.answers()
    import swarm.thin.tokenizing.render
    import swarm.thin.tokenizing.tokenizer

    if libraries:
        import swarm.models.tokenizer  # noqa: F401  (transformers asks other programs about the machine)
    sys.dont_write_bytecode = True
    memory = _address_space() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for limit in _NONE_AT_ALL:
        resource.setrlimit(limit, (0, 0))
    program = Program()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])  # SIGPROF ends a process that does not handle it
        answer = program.perform(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _address_space() -> int:
    """Bytes that this process takes before it reads a file: with transformers 0.6 GB, and several GB if torch has CUDA."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return MEMORY_BYTES
    return pages * resource.getpagesize()


class Program:
    """What can be asked, and the tokenizer that was opened."""

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self._grammar: Any = None
        self._actions: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "open": self._open, "try": self._try, "encode": self._encode, "encode_all": self._encode_all,
            "vocabulary": self._vocabulary, "decode": self._decode, "render": _render, "open_grammar": self._open_grammar,
            "begin_grammar": self._begin_grammar, "allowed": self._allowed,
        }  # fmt: skip

    def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer; what went wrong is one, too."""
        try:
            return self._actions[request["action"]](request)
        except SwarmError as error:
            return {"code": error.code, "error": str(error)}
        except BaseException as error:  # Rust's panics are no Exception
            return {"fault": " ".join(f"{type(error).__name__}: {error}".split())[:300]}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        from swarm.thin.tokenizing.tokenizer import open_tokenizer

        found = self._tokenizer = open_tokenizer(Path(request["folder"]))
        return {"names": found.names, "templates": dict(found.templates)}

    def _try(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load and use a tokenizer by transformers, and leave nothing open."""
        from swarm.models.tokenizer import load

        folder = Path(request["folder"])
        found = load(folder)
        if found is None:
            raise CheckpointError(f"{folder.name} holds no tokenizer that can be read")
        ids = found.encode(SAMPLE)
        for run in (ids, *([number] for number in range(256))):
            with contextlib.suppress(IndexError, OverflowError, TypeError):
                found.decode(run, skip_special_tokens=True)
        return {"num_ids": len(ids)}

    def _encode(self, request: dict[str, Any]) -> dict[str, Any]:
        text = request["text"]
        ids = self._tokenizer.encode(text, add_special_tokens=request["special"])
        most = min(MAX_IDS, 65_536 + 64 * len(text))
        if len(ids) > most:
            raise ModelNotSupportedError(
                f"the tokenizer makes {len(ids)} tokens of {len(text)} letters, at most {most} are taken"
            )
        return {"ids": ids}

    def _encode_all(self, request: dict[str, Any]) -> dict[str, Any]:
        found = self._tokenizer.encode_all(request["texts"], request["spans"])
        most = min(MAX_IDS, 65_536 + 64 * sum(map(len, request["texts"])))
        num_ids = sum(len(one.ids) for one in found)
        if num_ids > most:
            raise ModelNotSupportedError(f"the tokenizer makes {num_ids} tokens of a text, at most {most} are taken")
        return encoded.pack_all(found)

    def _vocabulary(self, request: dict[str, Any]) -> dict[str, Any]:
        found = self._tokenizer.vocabulary()
        return {"byte_lengths": encoded.pack(found.byte_lengths), "special": sorted(found.special)}

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        texts = [self._tokenizer.decode(ids, skip_special_tokens=request["skip"]) for ids in request["runs"]]
        most = 65_536 + 1_024 * sum(map(len, request["runs"]))
        if sum(map(len, texts)) > most:
            raise ModelNotSupportedError(
                f"the tokenizer makes {sum(map(len, texts))} letters of few tokens, at most {most} are taken"
            )
        return {"texts": texts}

    def _open_grammar(self, request: dict[str, Any]) -> dict[str, Any]:
        from swarm.thin.grammar.grammar import Grammar

        self._grammar = Grammar(Path(request["folder"]), request["vocab"], request["ends"])
        return {}

    def _begin_grammar(self, request: dict[str, Any]) -> dict[str, Any]:
        from swarm.thin.grammar.answer_form import AnswerForm

        self._grammar.begin(AnswerForm.unpack(request["form"]))
        return {}

    def _allowed(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"mask": base64.b64encode(self._grammar.allowed(request["token"])).decode()}


def _render(request: dict[str, Any]) -> dict[str, Any]:
    """`text`; or what the template said (`refusal`), or why there is no text (`failure`)."""
    import jinja2

    from swarm.thin.tokenizing.render import num_letters, render

    try:
        text = render(
            request["template"], request["messages"], request["variables"], request.get("is_prompt", True), request.get("day", ""),
            request.get("tools", ()),
        )  # fmt: skip
    except Exception as error:  # a template is an untrusted program: it may raise any error
        is_own = type(error) is jinja2.TemplateError  # raised by `raise_exception` alone: the template's own words
        words = " ".join((str(error) if is_own else f"{type(error).__name__}: {error}").split())[:1_000]
        return {"refusal" if is_own else "failure": words}
    most = MAX_OUTPUT + 8 * num_letters(request["messages"], request.get("tools", ()))
    return {"text": text} if len(text) <= most else {"failure": f"it makes {len(text)} letters, the limit is {most}"}
