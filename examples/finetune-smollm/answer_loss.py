"""Shows the loss of held-out answers under one or several checkpoints.

The loss is the mean cross entropy in nats per token of the answer, given the question in the tokenizer's chat template. The first question
is shown with its own loss; then the mean over all held-out pairs.

Run: .venv/bin/python examples/finetune-smollm/answer_loss.py BEFORE AFTER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


def answer_loss(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> tuple[float, int]:
    """(sum of cross entropy over the answer's tokens, how many they are)."""
    question = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    num_asked = len(tokenizer(question, add_special_tokens=False).input_ids)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0, num_asked - 1 : -1].float()
    targets = ids[0, num_asked:]
    return float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")), len(targets)


def main() -> int:
    parser = argparse.ArgumentParser(description="Show the loss of held-out answers.")
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, help="directories, such as that of the model and runs/…/checkpoint-60"
    )
    parser.add_argument("--data", type=Path, default=HERE / "held-out.jsonl", help="conversations (default: %(default)s)")
    given = parser.parse_args()
    held_out = [json.loads(line)["messages"] for line in given.data.read_text(encoding="utf-8").splitlines()]
    print(f"{held_out[0][0]['content']}\n{held_out[0][1]['content']}\n")
    for checkpoint in given.checkpoints:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        found = [answer_loss(model, tokenizer, messages) for messages in held_out]
        mean = sum(loss for loss, _ in found) / sum(count for _, count in found)
        print(f"{checkpoint}: this answer {found[0][0] / found[0][1]:.4f}, all {len(found)} answers {mean:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
