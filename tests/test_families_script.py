"""`scripts/families`: its verdicts on a few configurations.

A worker that dies costs one of them, and the page is what was found.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import gradient_check  # noqa: E402
from families import Worker, earlier  # noqa: E402
from family_check import check, greedy  # noqa: E402
from family_configs import all_configurations, shrunk  # noqa: E402
from family_table import EXACT, exact_names, gradients_of, summary, table, with_gradients  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("qwen3", "packed"),
        ("falcon: alibi", "paged"),
        ("gpt_neo", "serial"),
        ("jamba", "paged"),
        ("emu3", "packed"),
        ("deepseek_v4", "refused"),
    ],
)
def test_a_configuration_gets_its_verdict(name: str, verdict: str) -> None:
    outcome = check(name, all_configurations()[name])
    assert outcome.verdict == verdict, outcome
    assert outcome.architecture and (verdict != "refused" or outcome.reason)


def test_a_model_that_computes_something_else_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself is checked: tokens that are wrong in one place must show."""

    def wrong(model: object, ids: object, **options: object) -> object:
        tokens = greedy(model, ids, **options)  # type: ignore[arg-type]
        if "Swarm" in str(type(model).__mro__):
            tokens[0, -3] += 1
        return tokens

    monkeypatch.setattr("family_check.greedy", wrong)
    outcome = check("llama", all_configurations()["llama"])
    assert outcome.verdict == "differs" and "22" in outcome.reason


def test_every_type_of_transformers_is_among_the_configurations() -> None:
    names = list(all_configurations())
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= set(names)
    assert len(names) == len(set(names)) and names == list(all_configurations())


def test_a_configuration_that_cannot_be_made_is_incomparable() -> None:
    assert check("odd", lambda: shrunk("llama", {"hidden_size": -1})).verdict == "incomparable"


def test_a_worker_that_dies_or_hangs_fails_one_configuration_only() -> None:
    worker = Worker(limit_s=60.0, show_errors=False)
    try:
        dead = worker.check("no such configuration")
        assert (dead["verdict"], "died" in dead["reason"]) == ("fails", True)
        assert worker.check("gpt2")["verdict"] == "packed"
    finally:
        worker.stop()
    hasty = Worker(limit_s=0.01, show_errors=False)
    assert hasty.check("gpt2")["reason"].startswith("no answer within")


def test_outcomes_survive_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text(json.dumps({"name": "llama", "verdict": "packed"}) + "\n" + '{"name": "gpt2", "ver')
    assert list(earlier(file)) == ["llama"]


def test_the_page_counts_what_it_lists_and_promises_at_least_130() -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    counted = re.search(r"\*\*(\d+) exact\*\*", page)
    rows = page.partition("## Exact")[2].partition("## Not served")[0].count("\n| ") - 1
    assert counted and int(counted[1]) == rows >= 130


def test_a_table_holds_one_row_for_each_outcome() -> None:
    outcomes = [
        {"name": name, "verdict": verdict, "architecture": "A", "reason": "a|b", "remark": ""}
        for name, verdict in [("one", "packed"), ("two", "serial"), ("three", "refused")]
    ]
    assert "3 configurations, **2 exact** (1 packed, 0 paged, 1 one by one); 1 refused." in summary(outcomes)
    assert [line for line in table(outcomes).splitlines() if line.startswith("| three")] == ["| three | A | refused | a\\|b |"]
    assert set(EXACT) == {"packed", "paged", "serial"}


@pytest.mark.parametrize("name", ["gemma4", "llama: tied", "qwen3_moe"])
def test_a_configuration_has_the_gradients_of_the_whole_model(name: str) -> None:
    """gemma4 looks up the ids behind embeddings, so its head runs on ids."""
    outcome = gradient_check.check(name, all_configurations()[name])
    assert (outcome.verdict, outcome.reason) == ("equal", "")


def test_gradients_of_another_model_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself is checked: one bias of the model that is compared with is a little off."""
    right = gradient_check.whole_gradients

    def wrong(model: Any, cut: int) -> gradient_check.Measured:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
        return right(model, cut)

    monkeypatch.setattr(gradient_check, "whole_gradients", wrong)
    outcome = gradient_check.check("llama", all_configurations()["llama"])
    assert outcome.verdict == "differs" and "off by" in outcome.reason


def test_the_column_of_gradients_can_be_added_replaced_and_read() -> None:
    page = table([{"name": "one", "verdict": "packed", "architecture": "A", "reason": "", "remark": "a|b"},
                  {"name": "two", "verdict": "paged", "architecture": "B", "reason": "", "remark": ""},
                  {"name": "three", "verdict": "refused", "architecture": "C", "reason": "r", "remark": ""}])  # fmt: skip
    assert gradients_of(page) == {} and with_gradients(page, {}) == page
    first = with_gradients(page, {"two": "differs"})
    second = with_gradients(first, {"two": "equal"})
    assert gradients_of(second) == {"one": "", "two": "equal"} and exact_names(second) == exact_names(page)
    assert with_gradients(page, {"two": "equal"}) == second and second.count("- **gradients**") == 1
    assert "| three | C | refused | r |" in second and "| B | paged | equal |  |" in second


def test_the_page_says_that_at_least_255_configurations_have_equal_gradients() -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    assert sum(verdict == "equal" for verdict in gradients_of(page).values()) >= 255
