"""Trains a soft prompt through the frozen blocks of a swarm.

A soft prompt is a few vectors in front of a text's embeddings. They are the only parameters: they live on this machine, while the model's
blocks run at the nodes, which send gradients back and change nothing.

    swarm node HuggingFaceTB/SmolLM2-135M-Instruct                    # on one or several machines; it prints its multiaddr
    python examples/soft_prompt.py HuggingFaceTB/SmolLM2-135M-Instruct --peer MULTIADDR
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from swarm.client import SwarmModelForCausalLM

TEXTS = (
    "Q: What is a list?\nA: Arr, a list be a row of things, matey!",
    "Q: What is a file?\nA: Arr, a file be a chest of bytes, matey!",
    "Q: What is a loop?\nA: Arr, a loop be a course sailed again, matey!",
    "Q: What is a string?\nA: Arr, a string be a line of letters, matey!",
)


def main() -> None:
    given = arguments()
    torch.manual_seed(given.seed)
    with SwarmModelForCausalLM.from_pretrained(given.model, peers=given.peer, cache_dir=given.data_dir, thin=False) as model:
        ids, mask = batch(model, given.text or TEXTS)
        start = torch.randint(model.remote.vocab_size, (given.vectors,))
        prompt = torch.nn.Parameter(model.get_input_embeddings()(start).detach().float())
        optimizer = torch.optim.Adam([prompt], lr=given.lr)
        before = evaluate(model, prompt, ids, mask)
        for step in range(1, given.steps + 1):
            loss = loss_of(model, prompt, ids, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
        print(f"loss before {before:.4f}, after {evaluate(model, prompt, ids, mask):.4f}, {prompt.numel()} numbers trained")
        if given.out:
            torch.save(prompt.detach(), given.out)


def loss_of(model: Any, prompt: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean loss of the texts [B, T] behind the prompt [P, E]; the prompt itself and padding (mask 0) are no targets."""
    size, vectors = len(ids), len(prompt)
    tokens = model.get_input_embeddings()(ids)
    embeds = torch.cat([prompt.to(tokens.dtype).expand(size, -1, -1), tokens], dim=1)
    labels = torch.cat([torch.full((size, vectors), -100), ids.where(mask.bool(), -100)], dim=1)
    mask = torch.cat([torch.ones(size, vectors, dtype=mask.dtype), mask], dim=1)
    loss: Tensor = model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
    return loss


@torch.no_grad()
def evaluate(model: Any, prompt: Tensor, ids: Tensor, mask: Tensor) -> float:
    return loss_of(model, prompt, ids, mask).item()


def batch(model: Any, texts: list[str] | tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Token ids [B, T], padded on the right, and 1 at tokens. A checkpoint without a tokenizer gets the texts' bytes as ids."""
    tokenizer = model.tokenizer_if_any()
    each = [list(text.encode()) if tokenizer is None else tokenizer(text)["input_ids"] for text in texts]
    rows = [torch.tensor(ids) for ids in each]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return padded, mask


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory, a name that the swarm serves, or a Hub name")
    parser.add_argument("--peer", action="append", default=[], help="multiaddr of a peer of the swarm; may be repeated")
    parser.add_argument("--text", action="append", help="a text to learn; may be repeated; default: four answers of a pirate")
    parser.add_argument("--vectors", type=int, default=8, help="length of the soft prompt (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.02, help="Adam's learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", help="where hashes and fetched weights are kept (as of swarm node)")
    parser.add_argument("--out", help="file for the trained vectors [vectors, width], a torch tensor")
    return parser.parse_args()


if __name__ == "__main__":
    main()
