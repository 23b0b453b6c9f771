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
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RENDER_S):
            assert process.stdin and process.stdout
            process.stdin.write(request)
            process.stdin.close()
            answer = await process.stdout.read(-1)
            await process.wait()
    except TimeoutError:
        raise _failed(f"it takes longer than {RENDER_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        made = json.loads(answer) if len(answer) <= MAX_BYTES else {}
    except ValueError:
        made = {}
    if not isinstance(made.get("text"), str):
        raise _failed(str(made.get("error") or "it needs more time or memory than a template may have"))
    return str(made["text"])


def _failed(reason: str) -> ModelNotSupportedError:
    return ModelNotSupportedError(
        f"the model's chat template cannot be rendered: {reason}; use `swarm generate`, which needs none"
    )
