"""Tokenizer classes of transformers that build more than `tokenizer.json` says. (imports tokenizers)

Most checkpoints are read by a class that takes `tokenizer.json` as it is (`GENERIC`). A few classes of transformers 5 fill in names of
special tokens, and some build normalizer, pre-tokenizer and decoder themselves, whatever the file says: llama's puts no space
after a special token, where the file of many llama-2 checkpoints does. A table of data, compared with transformers by
tests/swarm/thin/processes/test_tokenizer_files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

GENERIC = "TokenizersBackend"

_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Settings = Mapping[str, Any]
"""`tokenizer_config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerClass:
    """What a class adds to the files."""

    defaults: Mapping[str, str]
    """Special tokens if the checkpoint names none."""

    model: Mapping[str, Any] | None = None
    """Settings of the BPE model that the class builds; None = the class takes `tokenizer.json` as it is."""

    build: Callable[[Tokenizer, Settings], None] = lambda inner, settings: None
    """Sets normalizer, pre-tokenizer and decoder."""


def class_of(model_type: object, declared: object, is_byte_level: bool) -> TokenizerClass:
    """The class that `AutoTokenizer` takes. declared: `tokenizer_class` of the checkpoint. is_byte_level: of its `tokenizer.json`. Pure."""
    name = declared.removesuffix("Fast") if isinstance(declared, str) else ""
    registered = REGISTERED.get(model_type) if isinstance(model_type, str) else None
    if name == "LlamaTokenizer" and is_byte_level:
        name = GENERIC
    elif name and registered is not None and name != registered:
        name = registered if registered == GENERIC or model_type in _DECLARED_WRONG else name
    return CLASSES.get(name or registered or GENERIC, CLASSES[GENERIC])


def _llama(inner: Tokenizer, settings: Settings) -> None:
    has_space = settings.get("add_prefix_space") is not False
    scheme = "never" if not has_space else "always" if settings.get("legacy") else "first"
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if has_space else steps)


def _gemma(inner: Tokenizer, settings: Settings) -> None:
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _gpt2(inner: Tokenizer, settings: Settings) -> None:
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    inner.decoder = decoders.ByteLevel()


def _gpt_neox(inner: Tokenizer, settings: Settings) -> None:
    _gpt2(inner, settings)
    inner.normalizer = normalizers.NFC()
    inner.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])  # none of the file's


def _cohere(inner: Tokenizer, settings: Settings) -> None:
    _gpt2(inner, settings)
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), inner.pre_tokenizer])


def _qwen(pattern: str) -> Callable[[Tokenizer, Settings], None]:
    def build(inner: Tokenizer, settings: Settings) -> None:
        has_space = bool(settings.get("add_prefix_space"))
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=has_space, use_regex=False)]
        )
        inner.decoder = decoders.ByteLevel()

    return build


def _names(text: str) -> dict[str, str]:
    return {f"{name}_token": token for name, _, token in (word.partition("=") for word in text.split())}


_END = "<|endoftext|>"
_BYTES = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False}
_PIECES = {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True}
_BERT = _names("unk=[UNK] sep=[SEP] pad=[PAD] cls=[CLS] mask=[MASK]")
_ROBERTA = _names("bos=<s> eos=</s> sep=</s> cls=<s> unk=<unk> pad=<pad> mask=<mask>")
_QWEN_NAMES = _names(f"unk={_END} eos={_END} pad={_END}")

CLASSES: Mapping[str, TokenizerClass] = {
    GENERIC: TokenizerClass(defaults={}),
    "LlamaTokenizer": TokenizerClass(defaults=_names("unk=<unk> bos=<s> eos=</s>"), model=_PIECES, build=_llama),
    "GemmaTokenizer": TokenizerClass(
        defaults=_names("unk=<unk> bos=<bos> eos=<eos> pad=<pad> mask=<mask>"), model={**_PIECES, "unk_token": None}, build=_gemma
    ),
    "GPT2Tokenizer": TokenizerClass(defaults=_names(f"unk={_END} bos={_END} eos={_END}"), model=_BYTES, build=_gpt2),
    "GPTNeoXTokenizer": TokenizerClass(
        defaults=_names(f"unk={_END} bos={_END} eos={_END} pad=<|padding|>"), model=_BYTES, build=_gpt_neox
    ),
    "CohereTokenizer": TokenizerClass(
        defaults=_names("unk=<UNK> bos=<BOS_TOKEN> eos=<|END_OF_TURN_TOKEN|> pad=<PAD> cls=<CLS> sep=<SEP> mask=<MASK_TOKEN>"),
        model=_BYTES,
        build=_cohere,
    ),
    "Qwen2Tokenizer": TokenizerClass(defaults=_QWEN_NAMES, model=_BYTES, build=_qwen(_QWEN2)),
    "Qwen3_5Tokenizer": TokenizerClass(defaults=_QWEN_NAMES, model=_BYTES, build=_qwen(_QWEN3_5)),
    "BertTokenizer": TokenizerClass(defaults=_BERT),
    "RoFormerTokenizer": TokenizerClass(defaults=_BERT),
    "RobertaTokenizer": TokenizerClass(defaults=_ROBERTA),
    "XLMRobertaTokenizer": TokenizerClass(defaults=_ROBERTA),
    "OpenAIGPTTokenizer": TokenizerClass(defaults=_names("unk=<unk>")),
    "XGLMTokenizer": TokenizerClass(defaults=_names("bos=<s> eos=</s> sep=</s> cls=<s> unk=<unk> pad=<pad>")),
}
"""By name; the classes that decoders use. What is not here counts as GENERIC."""

_TYPES: Mapping[str, str] = {
    "GPT2Tokenizer": "codegen dbrx emu3 gpt2 gpt_neo gptj jais2 opt phi starcoder2",
    "CohereTokenizer": "cohere cohere2",
    "Qwen2Tokenizer": "dots3_note moss_transcribe_diarize qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma zaya",
    "BertTokenizer": "bert electra ernie git megatron-bert",
    "RoFormerTokenizer": "roformer",
    "RobertaTokenizer": "data2vec-text roberta roberta-prelayernorm",
    "XLMRobertaTokenizer": "xlm-roberta xmod",
    "OpenAIGPTTokenizer": "openai-gpt",
    "XGLMTokenizer": "xglm",
    GENERIC: "ernie4_5 ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite got_ocr2 gpt_bigcode granite granitemoe "
    "granitemoehybrid granitemoeshared hyperclovax internlm3 iquestcoder jamba kimi_linear mimo_v2_flash minicpm3 minimax_m2 ministral "
    "ministral3 mistral mixtral modernbert-decoder nemotron olmo2 olmo3 olmo_hybrid persimmon phi3 phimoe stablelm xlm-roberta-xl",
}
REGISTERED: Mapping[str, str] = {kind: name for name, kinds in _TYPES.items() for kind in kinds.split()}
"""The class that transformers has for a model type. Of the others the checkpoint's own word decides."""

_DECLARED_WRONG = frozenset(("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp"))
"""Model types whose checkpoints name a wrong class: transformers takes the registered one."""
