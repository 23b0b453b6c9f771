"""Embeddings, by the clients of OpenAI, LangChain and Ollama."""

from __future__ import annotations

import httpx
import numpy as np
import ollama
import pytest
import torch
from langchain_openai import OpenAIEmbeddings
from openai import BadRequestError, NotFoundError
from transformers import AutoModel, PreTrainedTokenizerFast

from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm

TEXTS = ["Hello", "Zürich", "A list is a sequence of values. "]


@pytest.fixture(scope="module")
def expected(swarm: GatewaySwarm) -> np.ndarray:  # type: ignore[type-arg]
    """What one machine makes of TEXTS."""
    model = AutoModel.from_pretrained(swarm.checkpoint, dtype=torch.float32).eval()
    rows = token_ids(swarm)
    with torch.inference_mode():
        means = torch.stack([model(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows])
    return torch.nn.functional.normalize(means, dim=-1).numpy()  # type: ignore[no-any-return]


def token_ids(swarm: GatewaySwarm) -> list[list[int]]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(swarm.checkpoint)
    return [tokenizer(text).input_ids for text in TEXTS]


def test_openais_client_gets_those_of_one_machine(swarm: GatewaySwarm, expected: np.ndarray) -> None:  # type: ignore[type-arg]
    """Its own default is base64, which it decodes."""
    ids = token_ids(swarm)
    for given in (TEXTS, ids):
        for form in ({}, {"encoding_format": "float"}):
            made = swarm.client.embeddings.create(model="tiny", input=given, **form)  # type: ignore[arg-type]
            assert [one.index for one in made.data] == [0, 1, 2]
            assert np.allclose([one.embedding for one in made.data], expected, atol=1e-5)
            assert made.usage.prompt_tokens == made.usage.total_tokens == sum(map(len, ids))
    for one in (TEXTS[1], ids[1]):
        made = swarm.client.embeddings.create(model="tiny", input=one, dimensions=len(expected[0]))
        assert np.allclose([one.embedding for one in made.data], expected[1:2], atol=1e-5)


def test_langchain_gets_them(swarm: GatewaySwarm, expected: np.ndarray) -> None:  # type: ignore[type-arg]
    client = OpenAIEmbeddings(model="tiny", base_url=swarm.url, api_key="none", check_embedding_ctx_length=False)  # type: ignore[arg-type]
    assert np.allclose(client.embed_documents(TEXTS), expected, atol=1e-5)


def test_ollamas_client_gets_them(swarm: GatewaySwarm, expected: np.ndarray) -> None:  # type: ignore[type-arg]
    client = ollama.Client(host=swarm.url.removesuffix("/v1"), timeout=LIMIT_S)
    made = client.embed("tiny:latest", TEXTS)
    assert np.allclose(made.embeddings, expected, atol=1e-5)
    assert made.prompt_eval_count == sum(map(len, token_ids(swarm))) and made.total_duration
    assert np.allclose(client.embed("tiny", TEXTS[0]).embeddings, expected[:1], atol=1e-5)
    assert np.allclose(client.embeddings("tiny", TEXTS[0]).embedding, expected[0], atol=1e-5)
    assert client.embed("tiny", []).embeddings == [] and client.embeddings("tiny", "").embedding == []


def test_many_texts_at_once(swarm: GatewaySwarm, expected: np.ndarray) -> None:  # type: ignore[type-arg]
    made = swarm.client.embeddings.create(model="tiny", input=TEXTS * 20)
    assert np.allclose([one.embedding for one in made.data], np.tile(expected, (20, 1)), atol=1e-5)


def test_a_text_that_is_too_long_is_refused_or_cut(swarm: GatewaySwarm) -> None:
    client = ollama.Client(host=swarm.url.removesuffix("/v1"), timeout=LIMIT_S)
    limit = AutoModel.from_pretrained(swarm.checkpoint).config.max_position_embeddings
    long = "x" * (limit + 1)
    with pytest.raises(BadRequestError, match=f"this model's limit is {limit}"):
        swarm.client.embeddings.create(model="tiny", input=long)
    with pytest.raises(ollama.ResponseError, match=f"this model's limit is {limit}"):
        client.embed("tiny", long, truncate=False)
    assert client.embed("tiny", long).prompt_eval_count == limit


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": ""}, "the prompt is empty"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "the prompt is empty"),
        ({"input": [256]}, "token id 256 is out of range"),
        ({"input": ["x"] * 1025}, "input"),
        ({"input": ["x", 3]}, "input"),
        ({"dimensions": 7}, "dimensions: this model's embeddings have"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"input_type": "query"}, "unknown field input_type"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_embedded_is_refused_by_name(swarm: GatewaySwarm, fields: dict[str, object], words: str) -> None:
    made = httpx.post(f"{swarm.url}/embeddings", json={"model": "tiny", "input": "x", **fields}, timeout=LIMIT_S)
    assert made.status_code == 400 and words in made.json()["error"]["message"], made.text


def test_of_no_model_there_are_none(swarm: GatewaySwarm) -> None:
    with pytest.raises(NotFoundError, match="no model"):
        swarm.client.embeddings.create(model="huge", input="x")
