"""OpenAI's own client gets what `swarm generate` prints."""

from __future__ import annotations

import pytest

from tests.node.cli.test_commands import run
from tests.node.gateway.processes.conftest import GatewaySwarm

PROMPT = "The quick brown fox"
NEW = 12


def generated(swarm: GatewaySwarm, *flags: str, new: int = NEW, prompt: str = PROMPT) -> str:
    """What `swarm generate --thin` prints."""
    asked = ("generate", "tiny", prompt, "--max-new-tokens", str(new), "--peer", swarm.peer, "--thin", *flags)
    code, said, remarks = run(*asked, "--data-dir", str(swarm.pool.folder / "generate"))
    assert code == 0, remarks
    return said.removesuffix("\n")


DRAWS = {
    "greedy": ({}, ()),
    "temperature": ({"temperature": 1.5, "seed": 3}, ("--temperature", "1.5", "--seed", "3")),
    "nucleus": ({"temperature": 1.5, "top_p": 0.7, "seed": 4}, ("--temperature", "1.5", "--top-p", "0.7", "--seed", "4")),
    "top-k": (
        {"temperature": 1.5, "seed": 5, "extra_body": {"top_k": 6}},
        ("--temperature", "1.5", "--top-k", "6", "--seed", "5"),
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_completion_is_what_the_command_prints(swarm: GatewaySwarm, name: str) -> None:
    fields, flags = DRAWS[name]
    expected = generated(swarm, *flags)
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, **fields)
    assert [choice.text for choice in made.choices] == [expected]
    assert made.choices[0].finish_reason == "length" and made.usage.completion_tokens == NEW
    assert made.usage.prompt_tokens == len(PROMPT)
    chunks = list(swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"
