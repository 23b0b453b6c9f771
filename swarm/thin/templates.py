"""A conversation as text: by the model's chat template, rendered in a process of its own (`render.py`), else as plain turns."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from protocols.errors import ModelNotSupportedError
from swarm.thin.tokenizer import Tokenizer

RENDER_S = 10.0
"""Longest wait for a template, the start of the process included."""

MAX_BYTES = 8 << 20
MAX_WORDS = 300
"""Letters of a template's own words that are shown."""

_PROGRAM = Path(__file__).with_name("render.py")
Message = dict[str, str]


async def conversation_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation so far, up to where the model speaks. ModelNotSupportedError where the template fails."""
    if tokenizer.chat_template is not None:
        text = await render(tokenizer.chat_template, messages, tokenizer.names)
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(plain(messages))


def plain(messages: Sequence[Message]) -> str:
    """`User:` and `Assistant:` turns, for models that have no template."""
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    return "\n".join([*(names[message["role"]] + message["content"] for message in messages), "Assistant:"])


async def render(template: str, messages: Sequence[Message], variables: dict[str, str]) -> str:
    """What a stranger's template makes of the messages; ModelNotSupportedError says why there is nothing."""
    request = json.dumps({"template": template, "messages": list(messages), "variables": variables}).encode()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(_PROGRAM), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, start_new_session=True,  # Ctrl-C in a terminal is for us
    )  # fmt: skip
    try:
        async with asyncio.timeout(RENDER_S):
            assert process.stdin and process.stdout
            process.stdin.write(request)
            process.stdin.close()
            answer = await process.stdout.read(-1)
            await process.wait()
    except TimeoutError:
        raise failed(f"it takes longer than {RENDER_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        made = json.loads(answer) if len(answer) <= MAX_BYTES else {}
    except ValueError:
        made = {}
    if isinstance(made.get("refusal"), str):
        raise refused(made["refusal"])
    if not isinstance(made.get("text"), str):
        raise failed(str(made.get("error") or "it needs more time or memory than a template may have"))
    return without_surrogates(str(made["text"]))


def refused(words: str) -> ModelNotSupportedError:
    """The template itself says no (`raise_exception`): to the system role, say, or to roles that do not alternate."""
    return ModelNotSupportedError(
        f"the model's chat template refuses this conversation: {_quoted(words)}; leave out --system if it is about that role, "
        "or use `swarm generate`, which needs no template"
    )


def failed(reason: str) -> ModelNotSupportedError:
    """The template cannot be rendered at all."""
    return ModelNotSupportedError(
        f"the model's chat template cannot be rendered: {_shortened(reason)}; use `swarm generate`, which needs none"
    )


def without_surrogates(text: str) -> str:
    """`text`; ModelNotSupportedError if it has half a letter, as JSON can spell one: no tokenizer takes that."""
    at = next((at for at, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if at is not None:
        raise failed(f"it makes text that is not Unicode, with {text[at]!r} at letter {at}")
    return text


def _quoted(words: str) -> str:
    return repr(_shortened(words))


def _shortened(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= MAX_WORDS else line[:MAX_WORDS] + "…"
