"""The options of one forward.

They come from its arguments, by name, and else from the model's config.

transformers drops an argument that no part of a model reads, and its blocks read some that do not come as far as the nodes. Here an
argument is read, or it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protocols.errors import BadRequestError, shown

_PACKED = "packed sequences are told by position_ids that start anew, with use_cache=False and no attention_mask"
_BLOCKS = "it is for the blocks, and nodes get hidden states, padding and positions only; leave it out"
_CAUSAL = "blocks at the nodes attend to earlier tokens only; leave it out"

_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"), _PACKED),
    **dict.fromkeys(("encoder_hidden_states", "encoder_attention_mask", "encoder_outputs", "shared_kv_states"), _BLOCKS),
    **dict.fromkeys(("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"), _BLOCKS),
    **dict.fromkeys(("head_mask", "per_layer_inputs", "mems", "perm_mask", "target_mapping", "state"), _BLOCKS),
}
"""Argument -> why not, and what to do."""

LOSS = ("num_items_in_batch", "shift_labels", "ignore_index")
"""Arguments of the loss, which is computed here."""

_READ = frozenset(
    [
        "position_ids",  # families without positions take them and do not look, and so do their hops
        *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "output_router_logits", "is_causal"),
        *LOSS,
        *("cache_position", "is_first_iteration", "next_sequence_length"),  # `generate` tells them; what they say is known here
        *("tokenizer", "assistant_tokenizer"),  # `generate` hands on what was meant for its stopping criteria
    ]
)
"""Arguments that any forward takes, whether its signature names them or not."""

_ELSEWHERE = {
    "output_attentions": "attentions are not here: they stay at the hops that computed them; ask without output_attentions",
    "output_router_logits": "router logits are not here: they stay at the hops that computed them; ask without output_router_logits",
}


def bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, each known and given once. names: what the model's own forward calls its parameters, in order."""
    if len(args) > len(names):
        raise BadRequestError(f"a forward of this model takes {len(names)} arguments ({', '.join(names)}), got {len(args)}")
    given = dict(zip(names, args, strict=False))
    twice = given.keys() & kwargs.keys()
    if twice:
        raise BadRequestError(f"{min(twice)} came twice, by its place and by its name; leave one out")
    given |= kwargs
    for name, value in given.items():
        if value is not None and (name in _REFUSED or (name not in _READ and name not in names)):
            reason = _REFUSED.get(name, f"it takes {', '.join(names)}; leave it out, or correct its name")
            raise BadRequestError(f"a forward of this model takes no {name}: {reason}")
    return given


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOptions:
    """What a forward is to return."""

    hidden_states: bool
    is_tuple: bool
    use_cache: bool


def settled(names: Sequence[str], kwargs: dict[str, Any], config: Any, *, is_generating: bool) -> ForwardOptions:
    """Take the options from `kwargs`; the config says what they leave open, as in transformers.

    is_generating: `generate` asks for all that it needs, so the config adds nothing, and the model's own forward is told to add nothing.
    """

    def said(name: str, otherwise: bool = False) -> Any:
        value = kwargs.pop(name, None)
        return getattr(config, name, otherwise) if value is None and not is_generating else value

    for name, reason in _ELSEWHERE.items():
        if said(name):
            raise BadRequestError(f"{reason}, and with model.config.{name} = False")
    is_causal = kwargs.pop("is_causal", None)
    if is_causal is False or (is_causal is None and getattr(config, "is_causal", None) is False):
        raise BadRequestError(f"is_causal is False, in the call or in the model's config, but {_CAUSAL}")
    use_cache = kwargs.pop("use_cache", None)
    asked = ForwardOptions(
        hidden_states=bool(said("output_hidden_states")),
        is_tuple=said("return_dict", True) is False,
        use_cache=bool(getattr(config, "use_cache", True) if use_cache is None else use_cache),
    )
    for name in ("tokenizer", "assistant_tokenizer"):
        kwargs.pop(name, None)
    kwargs |= {name: False for name in ("output_hidden_states", "output_attentions", "output_router_logits") if name in names}
    return asked


def check_labels(kwargs: Mapping[str, Any], real: Tensor | None, rows: int, columns: int, vocab_size: int) -> None:
    """Labels are ids for every column, and none is predicted from padding, for which hops have no output. real: [B, q] bool, None = all."""
    labels, ignored = kwargs.get("labels"), kwargs.get("ignore_index")
    ignored = -100 if ignored is None else ignored
    if labels is None:
        return
    keep = kwargs.get("logits_to_keep")
    if isinstance(keep, Tensor) or keep:
        raise BadRequestError("labels need the logits of all columns; leave logits_to_keep out")
    if kwargs.get("shift_labels") is not None:
        labels = kwargs["shift_labels"]
    is_fit = isinstance(labels, Tensor) and not labels.is_floating_point() and list(labels.shape) == [rows, columns]
    if not is_fit:
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise BadRequestError(f"labels must be integers [{rows}, {columns}], one for each token, got {got}")
    counted = labels.ne(ignored)
    if bool((counted & (labels.lt(0) | labels.ge(vocab_size))).any()):
        raise BadRequestError(f"labels must be {ignored}, or ids from 0 to {vocab_size - 1}")
    if real is None:
        return
    is_shifted = kwargs.get("shift_labels") is not None
    wrong = (counted & ~real if is_shifted else counted[:, 1:] & ~real[:, :-1]).nonzero().tolist()
    if wrong:
        row, column = wrong[0]
        raise BadRequestError(
            f"labels[{row}, {column if is_shifted else column + 1}] would be predicted from padding; set it to {ignored}"
        )


def check_keep(keep: object, columns: int) -> None:
    """`logits_to_keep` is a number of last columns, or the columns as a tensor."""
    if isinstance(keep, Tensor):
        is_mask = keep.dtype == torch.bool and list(keep.shape) == [columns]
        is_list = (
            keep.dim() == 1 and keep.dtype in (torch.int32, torch.int64) and bool(((keep >= -columns) & (keep < columns)).all())
        )
        if is_mask or is_list:
            return
    elif keep is None or isinstance(keep, int):
        return
    raise BadRequestError(
        f"logits_to_keep must be a number of last columns, or a tensor of columns from 0 to {columns - 1}, got {shown(keep)}"
    )
