"""Attention of packed rows: each lesson by itself, causally, and no mask at all.

The usual way, a block-diagonal mask over the whole row, costs the square of the row's length in memory and time, and
rules out the fast kernels. Here each lesson goes through PyTorch's own kernel alone. On GPUs with flash-attn installed
its variable-length kernel does the same in one call, and is taken instead.

`install()` makes it known to transformers under NAME; a model is loaded with attn_implementation=NAME.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from app.errors import Misconfigured

NAME = "lesson_by_lesson"


def install() -> str:
    """Register with transformers. Returns the name. No mask is built for an implementation without a mask function."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, lesson_by_lesson)
    return NAME


def lesson_by_lesson(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_others: object,
) -> tuple[Tensor, None]:
    """query: [1, heads, tokens, head]; key, value: [1, groups, tokens, head]. Returns [1, tokens, heads, head].

    cu_seq_lens_q: where lessons begin, and the end; absent: the rows of the batch are lessons. Raises Misconfigured
    for models whose attention is of another kind.
    """
    if softcap is not None:
        problem = "its attention caps scores, which packing does not do"
        raise Misconfigured("tune.base", problem, "Set tune.packing false.")
    borders = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    longest = max(end - start for start, end in pairwise(borders))
    if sliding_window is not None and longest > sliding_window:
        problem = f"its attention reaches {sliding_window} tokens back, and a lesson has {longest}"
        raise Misconfigured("tune.window", problem, f"Set it to at most {sliding_window}, or tune.packing false.")
    grouped = query.shape[1] != key.shape[1]
    spoken = [
        functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            dropout_p=dropout if module.training else 0.0,
            scale=scaling,
            is_causal=True,
            enable_gqa=grouped,
        )
        for start, end in pairwise(borders)
    ]
    return torch.cat(spoken, dim=2).transpose(1, 2).contiguous(), None
