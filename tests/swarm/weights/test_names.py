"""What is said about a name that the swarm does not serve."""

from __future__ import annotations

import pytest

from swarm.weights import names

SERVED = ("SmolLM2-135M-Instruct", "tiny-prose", "meta-llama/Llama-3.2-1B", "gpt2")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("SmolLM2-135M-Instuct", "SmolLM2-135M-Instruct"),
        ("smollm2-135m-instruct", "SmolLM2-135M-Instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("tiny_prose@0123456789", "tiny-prose"),
    ],
)
def test_a_misspelt_name_is_told_the_one_that_was_meant_first(asked: str, meant: str) -> None:
    assert names.is_misspelt(asked, SERVED)
    assert f"did you mean {meant}? it serves {meant}, " in str(names.not_served(asked, SERVED))


@pytest.mark.parametrize("asked", ["Qwen/Qwen3-8B", "mistralai/Mistral-7B-v0.3", "gpt2", "gpt2@012345"])
def test_another_name_is_not_taken_for_a_served_one(asked: str) -> None:
    assert not names.is_misspelt(asked, SERVED)
    assert "did you mean" not in str(names.not_served(asked, SERVED))


def test_long_lists_and_names_are_cut() -> None:
    said = str(names.not_served("x", [f"model-{number:03}" + "y" * 500 for number in range(30)]))
    assert "and 22 more" in said and len(said) < 9 * 100
    assert names.served_too("x", []) == "" and names.served_too("x", ["x"]) == ""
