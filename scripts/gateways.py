"""A gateway in front of two nodes on this machine, for scripts.

Its model has random weights, a token for each byte, an end token and a chat template that knows tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from volunteers import Node, start_node, start_process

NAME = "tiny"
MARKS = ("<tool_call>", "</tool_call>")
END = "<end>"
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}{% for m in messages %}{{ m.role[:1] }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %};{% endfor %}a:"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the model."""

    context: int = 48
    """Positions."""

    hidden: int = 64
    blocks: int = 4


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What runs; `stop` of `volunteers` ends it."""

    url: str
    """Without `/v1`."""

    process: Node
    nodes: tuple[Node, Node]


def start_gateway(folder: Path, running: list[Node], size: Size | None = None, words: tuple[str, ...] = ()) -> Gateway:
    """Make the model, start the nodes and the gateway, and wait until it serves.

    running: gets each process as it starts. words: more arguments of `swarm serve`.
    """
    size = size or Size()
    model = make_model(folder / NAME, size)
    peers: list[str] = []
    for number, span in enumerate((f"0:{size.blocks // 2}", f"{size.blocks // 2}:{size.blocks}")):
        running.append(start_node(f"node{number}", span, model, peers, folder))
        peers = [running[-1].wait_for("multiaddr")]
    first, second = running[-2:]
    second.wait_for("ready")
    peer = first.wait_for("multiaddr")
    serve = ["serve", NAME, "--port", "0", "--peer", peer, "--no-lan", "--data-dir", str(folder / "gateway-data"), *words]
    running.append(process := start_process("gateway", serve, folder))
    process.wait_for("ready")
    return Gateway(url=process.wait_for("address").removesuffix("/v1"), process=process, nodes=(first, second))


def make_model(folder: Path, size: Size) -> Path:
    """A Llama, saved."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    tokenizer.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=2 * size.hidden, num_hidden_layers=size.blocks,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=size.context, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
