"""Every field of the official clients is taken, or documented as refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import ollama
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from ollama._types import ChatRequest, EmbeddingsRequest, EmbedRequest, GenerateRequest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import BaseModel, ValidationError

from node.gateway.anthropic.messages import CountBody, MessagesBody
from node.gateway.ollama.asking import GenerateBody, OllamaChatBody
from node.gateway.ollama.embeddings import EmbedBody, OldBody
from node.gateway.ollama.form import Options
from node.gateway.openai.chat import ChatBody
from node.gateway.openai.completions import CompletionBody
from node.gateway.openai.embeddings import EmbeddingsBody
from node.gateway.openai.items import CallItem
from node.gateway.openai.responses import ResponsesBody

DOCUMENT = Path(__file__).parents[3] / "docs" / "gateway.md"
CLIENTS: list[tuple[type, type[BaseModel]]] = [
    (ChatParams, ChatBody),
    (TextParams, CompletionBody),
    (ResponseCreateParamsBase, ResponsesBody),
    (EmbeddingCreateParams, EmbeddingsBody),
    (MessageCreateParamsBase, MessagesBody),
    (MessageCountTokensParams, CountBody),
    (ChatRequest, OllamaChatBody),
    (GenerateRequest, GenerateBody),
    (EmbedRequest, EmbedBody),
    (EmbeddingsRequest, OldBody),
    (ollama.Options, Options),
]
PLAIN = frozenset({"num_keep", "num_batch", "main_gpu", "numa", "low_vram", "f16_kv", "use_mmap", "use_mlock"})
"""Of a machine of one's own: the document names some of them for all."""


def fields_of(request: type) -> Iterable[str]:
    return request.model_fields if issubclass(request, BaseModel) else request.__annotations__


@pytest.mark.parametrize(("request_type", "body"), CLIENTS, ids=lambda one: one.__name__)
def test_what_a_client_can_send_is_taken_or_named(request_type: type, body: type[BaseModel]) -> None:
    document = DOCUMENT.read_text()
    unknown = [name for name in fields_of(request_type) if name not in body.model_fields and f"`{name}`" not in document]
    assert not unknown, f"docs/gateway.md does not say what becomes of {unknown}"


@pytest.mark.parametrize("body", [body for _, body in CLIENTS], ids=lambda one: one.__name__)
def test_what_is_taken_is_named(body: type[BaseModel]) -> None:
    document = DOCUMENT.read_text()
    assert not [name for name in body.model_fields if name not in document and name not in PLAIN]


@pytest.mark.parametrize(("field", "value"), [("async", False), ("async", None), ("async_", None)])
def test_a_call_may_come_back_as_the_client_names_its_fields(field: str, value: bool | None) -> None:
    """`async` on the wire; `async_` as `model_dump()` says it."""
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
    assert CallItem.model_validate({**call, field: value}).name == "add"
    with pytest.raises(ValidationError, match="not supported"):
        CallItem.model_validate({**call, field: True})
