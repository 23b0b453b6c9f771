"""A directory with a GGUF file as MODEL: served and asked like the checkpoint that it was made from, and converted once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from protocols.errors import CheckpointError, ConfigError, ModelNotSupportedError, SwarmError
from swarm.client import SwarmModelForCausalLM
from swarm.models.gguf_main import saved_dtype
from swarm.models.resolve import resolve
from swarm.waiting import Wait, Waits
from tests.end_to_end.processes import ROOT
from tests.end_to_end.town import Town
from tests.families import draw_weights

TEXT = "the cat and the hat"
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def make_model(num_tokens: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=num_tokens, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            draw_weights(model)
    return model.eval()


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE, as GGUF lists them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "th e", "a t", "Ġ the"]
    return ["<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in merges)], merges


def write_gguf(path: Path, model: Any, architecture: str = "llama") -> Path:
    """The model as llama.cpp's converter would write it, in float32."""
    tokens, merges = vocabulary()
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(*_as_gguf(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_gguf(name: str, tensor: torch.Tensor, config: Any) -> tuple[str, Any]:
    ends = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in ends:
        return ends[name], tensor.numpy()
    block, _, rest = name.removeprefix("model.layers.").partition(".")
    kind = rest.removesuffix(".weight")
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(kind)
    if heads:  # llama.cpp rotates neighbours, transformers the two halves of a head
        tensor = tensor.view(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
    return f"blk.{block}.{NAMES[kind]}.weight", tensor.contiguous().numpy()


def make_directory(folder: Path, architecture: str = "llama") -> tuple[Path, Any]:
    """A directory with one file, and the model that it was made from."""
    folder.mkdir()
    model = make_model(len(vocabulary()[0]))
    write_gguf(folder / "tiny.gguf", model, architecture)
    return folder, model


def test_node_and_client_take_the_directory_and_convert_it_once(
    running_town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes want it at the same time, with one cache: one converts, the other waits, and takes what that made."""
    directory, model = make_directory(tmp_path / "tiny")
    data, waits = tmp_path / "data", list[Wait | None]()
    arguments = ["node", str(directory), "--listen", "127.0.0.1:0", "--data-dir", str(data), "--swarm", "gguf", "--no-lan"]
    node = running_town.nursery.start("gguf", arguments, {"TMPDIR": str(tmp_path)})
    try:
        place = resolve(str(directory), data_dir=data, waits=Waits(waits.append))
        assert {wait.kind for wait in waits if wait} == {"converting"}, "it was told of"
        peer = node.wait_for("multiaddr")
        node.wait_for("ready")
        assert [*(data / "converted").glob("*/*"), *(data / "converted").glob(".*")] == [place], "one, and nothing beside it"
        with monkeypatch.context() as bare:
            bare.setitem(sys.modules, "gguf", None)  # not installed: so this cannot convert again
            asked = SwarmModelForCausalLM.from_pretrained(directory, peers=[peer], swarm="gguf", cache_dir=data)
        with asked:
            ids = asked.tokenizer(TEXT, return_tensors="pt").input_ids
            found = asked.generate(ids, **GREEDY).tolist()
    finally:
        node.end(signal.SIGKILL)
        node.close()
    assert found == model.generate(ids, **GREEDY).tolist(), "the model that the file was made from"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file="tiny.gguf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file="tiny.gguf")
    assert found == theirs.generate(tokenizer(TEXT, return_tensors="pt").input_ids, **GREEDY).tolist()


def test_a_conversion_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 of the process that asked for it, while the converter runs: that ends, and removes what it has written."""
    directory, _model = make_directory(tmp_path / "tiny")
    program = "import sys; from pathlib import Path; from swarm.models.gguf import *; checkpoint_of(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", program, str(directory), str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        _wait_until(lambda: any((tmp_path / "data").glob("converted/.unfinished-*")))
        process.kill()
    _wait_until(lambda: [path.name for path in (tmp_path / "data" / "converted").iterdir()] == ["lock"])


def _wait_until(is_so: Callable[[], bool]) -> None:
    ends_at_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends_at_s
        time.sleep(0.02)


def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    directory, _model = make_directory(tmp_path / "tiny")
    whole = (directory / "tiny.gguf").read_bytes()
    (directory / "tiny.gguf").write_bytes(whole[:-1000])
    message = refusal(CheckpointError, directory, tmp_path / "data")
    assert f"{directory}/tiny.gguf has {len(whole) - 1000} bytes" in message and "download it again" in message


def test_an_architecture_that_transformers_does_not_load_is_one_line(tmp_path: Path) -> None:
    directory, _model = make_directory(tmp_path / "tiny", "plamo")
    assert "of architecture 'plamo'" in refusal(ModelNotSupportedError, directory, tmp_path / "data")


def test_two_files_are_one_line(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert "2 GGUF files (a.gguf, b.gguf)" in refusal(CheckpointError, tmp_path, tmp_path / "data")


def test_without_its_packages_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install '.[gguf]'" in refusal(ConfigError, tmp_path, tmp_path / "data")


def test_a_gguf_file_beside_safetensors_counts_for_nothing(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert resolve(str(tmp_path)) == tmp_path


def test_the_saved_dtype_holds_what_the_file_does() -> None:
    assert (
        saved_dtype({"F16"}) is torch.float16
        and saved_dtype({"BF16"}) is torch.bfloat16
        and saved_dtype({"F32"}) is torch.float32
    )
    assert saved_dtype({"Q4_1"}) is saved_dtype({"Q6_K", "F16"}) is saved_dtype({"F16", "BF16"}) is torch.float32


def refusal(kind: type[SwarmError], directory: Path, data: Path) -> str:
    """What it says; nothing is left of the attempt."""
    with pytest.raises(kind) as refused:
        resolve(str(directory), data_dir=data)
    assert "\n" not in str(refused.value) and not [path for path in data.glob("converted/*") if path.name != "lock"]
    return str(refused.value)
