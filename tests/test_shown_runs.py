"""Every command and program that the documents show is run, or excused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import pytest
import transformers

from scripts.run_files import write_run
from tests.collector import Collector
from tests.end_to_end.processes import ProcessPool
from tests.families import add_byte_tokenizer, write_checkpoint
from tests.forked import ForkServer
from tests.shown_code import ALL, EXCUSED, ROOT
from tests.shown_terminal import Terminal

RUN = [one for one in ALL if one.excuse is None]
BY_THEMSELVES = ("docs/private.md",)
"""Documents with a swarm of their own. The others are typed in one terminal, and a line that it knows is not typed again."""

FROM_THE_START = ("README.md", "docs/quick-start.md", "docs/training.md", *BY_THEMSELVES)
"""Documents that begin with the first node of a swarm; the others ask a swarm that is there already."""

BEFORE = {
    "docs/python.md": """
import torch
from swarm.client import SwarmModelForCausalLM
model = SwarmModelForCausalLM.from_pretrained("MODEL", peers="MULTIADDR")
ids, more, labels = torch.tensor([[65, 66, 67]]), torch.tensor([[68, 69]]), torch.tensor([[-100, -100, 65, 66, 67]])
hidden, next_hidden, prompt = torch.randn(1, 3, 32), torch.randn(1, 1, 32), torch.nn.Parameter(torch.randn(1, 2, 32))
""",
    "docs/gateway.md": """
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
""",
}
"""What the programs of a document have done before, as its sentences say."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small blocks, and a tokenizer whose 256 tokens are the bytes."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    directory = write_checkpoint(config, tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role[:1] }}:{{ m.content }};{% endfor %}a:")
    return directory


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six blocks and two versions, of the name that the example has."""
    fields = {"name": "prose", "training.steps": 2}
    return write_run(tmp_path_factory.mktemp("run") / "prose", fields, config={"num_hidden_layers": 6})


@pytest.fixture(scope="module")
def peer(model: Path, tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[str]:
    """The node of documents that ask a swarm that is there."""
    with ProcessPool(tmp_path_factory.mktemp("nodes"), fork_server) as pool:
        yield pool.node(str(model), "--no-lan").said["multiaddr"]


@pytest.fixture(scope="module")
def terminals(
    model: Path, run_file: Path, tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer
) -> Iterator[Callable[[str], Terminal]]:
    """The terminal of a document."""
    made: dict[str, Terminal] = {}
    with ExitStack() as open_ones, Collector() as collector:

        def of(document: str) -> Terminal:
            name = Path(document).stem if document in BY_THEMSELVES else "shared"
            if name not in made:
                folder = tmp_path_factory.mktemp(name)
                pool = open_ones.enter_context(ProcessPool(folder, fork_server))
                own = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
                made[name] = Terminal(fork_server, pool, folder, model, run_file, own)
            return made[name]

        yield of


def test_every_excuse_is_needed_and_names_files_that_there_are() -> None:
    unneeded = [begin for begin in EXCUSED if not any(one.language == "sh" and one.text.startswith(begin) for one in ALL)]
    assert not unneeded
    for reason in EXCUSED.values():
        for path in re.findall(r"\b(?:tests|scripts|docs)/[\w/.]+\w", reason):
            assert (ROOT / path).exists(), reason


def test_what_is_not_excused_is_a_command_or_a_program_that_a_test_below_runs() -> None:
    strange = [one for one in RUN if one.language == "sh" and one.text.partition(" ")[0] not in ("swarm", "curl")]
    assert not [one for one in strange if not one.text.startswith(".venv/bin/python examples/")]
    assert len(RUN) > 40 and sum(one.language == "python" for one in RUN) > 10


@pytest.mark.parametrize("document", sorted({one.document for one in RUN}))
def test_what_a_document_shows_works(document: str, peer: str, terminals: Callable[[str], Terminal]) -> None:
    """In the order in which the document shows it, and what it starts ends in order."""
    terminal = terminals(document)
    terminal.own["SWARM_PEER"] = "" if document in FROM_THE_START else peer
    for language, group in groupby([one for one in RUN if one.document == document], lambda one: one.language):
        if language == "python":
            terminal.python(list(group), BEFORE.get(document, ""))
        else:
            for one in group:
                terminal.type(one)
    terminal.close()
