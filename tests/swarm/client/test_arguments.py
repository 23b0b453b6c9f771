"""Arguments of transformers and Petals work or get a clear error.

The error is one line that says what to use.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from protocols.errors import BadRequestError
from swarm.client import SwarmModelForCausalLM
from swarm.client.arguments import NO_MATTER, REFUSED, SAME, device_of, peers_of, settled

PEER = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWMZr8kXs1YQ2UfLcX2qp3N5uPyq2JbVqs6mGfJw9Lk3zR"
OURS: dict[str, Any] = {"peers": (), "dtype": "auto", "device": "cpu"}


def take(**others: Any) -> dict[str, Any]:
    return settled(OURS, others, SwarmModelForCausalLM.from_pretrained)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (dict(torch_dtype=torch.float16), dict(dtype=torch.float16)),
        (dict(torch_dtype=None), {}),
        (dict(initial_peers=[PEER]), dict(peers=[PEER])),
        (dict(device_map="cpu"), {}),
        (dict(device_map={"": "cuda:1"}), dict(device="cuda:1")),
        (dict(device_map=None, load_in_4bit=False, quantization_config=None, trust_remote_code=False), {}),
        (dict(low_cpu_mem_usage=True, use_safetensors=True, revision="main", token=True, attn_implementation=None), {}),
    ],
)
def test_what_makes_sense_is_taken(others: dict[str, Any], expected: dict[str, Any]) -> None:
    assert take(**others) == OURS | expected


def test_auto_is_the_accelerator_of_this_machine_if_it_has_one() -> None:
    assert device_of(take(device_map="auto")["device"]).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (dict(load_in_4bit=True), "takes no load_in_4bit here: .* pass dtype="),
        (dict(quantization_config=BitsAndBytesConfig(load_in_8bit=True)), "quantization_config here: .* leave it out"),
        (dict(trust_remote_code=True), "code in a checkpoint is never run"),
        (dict(attn_implementation="flash_attention_2"), "blocks run at the nodes"),
        (dict(revision="v2"), "NAME@DIGEST"),
        (dict(token="hf_secret"), r"HF_TOKEN(?!.*hf_secret)"),
        (dict(use_safetensors=False), "use_safetensors"),
        (dict(pad_token_id=0), "model.generation_config"),
        (dict(device_map={"a": 0, "b": 1}), "pass device="),
        (dict(request_timeout=5), "pass patience_s="),
        (dict(dht_prefix="x"), "pass model_name="),
        (dict(pears=[PEER]), "knows no argument 'pears'; did you mean peers"),
        (dict(torch_dtyp="auto"), "did you mean torch_dtype"),
        (dict(zzz=1), "knows no argument 'zzz'; it takes accept_new_weights, .*cache_dir, .*device, dtype, .*thin"),
        (dict(device="gpu"), r"device 'gpu' cannot be used here"),
        (dict(device="meta"), "meta device"),
        (dict(device_map="gpu"), r"device 'gpu' cannot be used here"),
        (dict(peers=7), "peers is an address"),
        (dict(peers={"a": PEER}), "peers is an address"),
        (dict(peers=[PEER], initial_peers=["other"]), "initial_peers is another name of peers"),
        (dict(dtype="float32", torch_dtype="float16"), "torch_dtype is another name of dtype"),
        (dict(torch_dtype="int4"), "dtype must be auto"),
        (dict(patience_s="10"), "patience_s is a number"),
        (dict(priority=0.5), "priority is an integer"),
        (dict(swarm=None), "swarm is a name"),
    ],
)
def test_the_rest_is_refused_before_anybody_is_asked(others: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as caught:
        SwarmModelForCausalLM.from_pretrained("somebody/else", **others)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, "", 3, torch.nn.Linear(1, 1)])
def test_a_model_is_a_name_or_a_directory(model: Any) -> None:
    with pytest.raises(BadRequestError, match="model is a directory, a name"):
        SwarmModelForCausalLM.from_pretrained(model)


def test_peers_are_one_address_or_several() -> None:
    assert peers_of(PEER) == peers_of([PEER]) == (PEER,)
    assert peers_of(f"{PEER}, {PEER}") == peers_of(f" {PEER} {PEER}\n") == (PEER, PEER)
    assert peers_of(None) == peers_of(()) == peers_of("") == ()


def test_the_signature_shows_our_names_and_no_table_names_one_of_them() -> None:
    parameters = inspect.signature(SwarmModelForCausalLM.from_pretrained).parameters
    assert {"peers", "dtype", "device", "patience_s", "thin"} <= set(parameters)
    assert set(SAME.values()) <= set(parameters)
    assert not set(parameters) & {*SAME, *REFUSED, *NO_MATTER}
