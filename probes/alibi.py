"""How far a head with linear biases (ALiBi) can look, told by its weights alone."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InputError, UnsupportedModelError
from interp.models import Model

EPSILON = 1e-3
"""Weight below which a token counts as unseen."""


def alibi_spans(model: Model, epsilon: float = EPSILON) -> xr.DataArray:
    """Distance beyond which no token can get more than `epsilon` of a head.

    `(2 |W_Q W_K| (|gamma|^2 + |b|^2) - log epsilon) / slope`, with the norm of the
    linear map as the model scales it, and weight and bias of the layer norm before.
    Heads of a long span need a full cache.

    Args:
        model: Of a family with ALiBi: BLOOM, MPT. It is not run.
        epsilon: Share of attention, in (0, 1).

    Returns:
        Tokens, over (layer, head).

    Raises:
        InputError: epsilon is no share.
        UnsupportedModelError: The model has no ALiBi.

    Source:
        RazorAttention (arXiv:2407.15891), Theorem 1. Biases of queries and keys, which
        BLOOM has, are not in it.
    """
    if not 0 < epsilon < 1:
        raise InputError(
            f"A share of attention lies between 0 and 1; got epsilon={epsilon}. The "
            f"paper takes {EPSILON}."
        )
    kind = model.anatomy.model_type
    if kind not in _FAMILIES:
        raise UnsupportedModelError(
            f"Spans follow from the slopes of ALiBi; {kind} models have none, or not "
            f"where they are looked for. Choose one of {', '.join(_FAMILIES)}; for "
            "other models take interp.probes.groups.razor_groups."
        )
    slopes, layers = _FAMILIES[kind](model.module.base_model)
    scores = torch.stack([_largest_score(*layer) for layer in layers])
    spans = (2 * scores - math.log(epsilon)) / slopes.double().cpu()
    values = spans.numpy()
    return xr.DataArray(
        values,
        dims=("layer", "head"),
        coords={
            "layer": np.arange(values.shape[0]),
            "head": np.arange(values.shape[1]),
            "kv_head": ("head", np.arange(values.shape[1])),
        },
        name="alibi_span",
        attrs={
            "units": "tokens",
            "long_name": "span of an ALiBi head",
            "source": "arXiv:2407.15891 Theorem 1",
            "epsilon": epsilon,
            "site": "self",
        },
    )


_Layer = tuple[Tensor, Tensor, nn.LayerNorm]
"""Weights of queries, scaled, and keys, `[head, d, d_model]`; the norm before them."""


@torch.no_grad()
def _largest_score(
    query: Float[Tensor, "head d d_model"],
    key: Float[Tensor, "head d d_model"],
    norm: nn.LayerNorm,
) -> Float[Tensor, " head"]:
    """`|W_Q W_K| (|gamma|^2 + |b|^2)` of each head."""
    # The map is as wide as the model, but of rank d: both sides are rotated to d.
    left, right = (torch.linalg.qr(w.double().cpu().mT).R for w in (query, key))
    width = torch.linalg.matrix_norm(left @ right.mT, 2)
    affine = [each for each in (norm.weight, norm.bias) if each is not None]
    return width * sum(each.double().cpu().square().sum() for each in affine)


def _bloom(base: Any) -> tuple[Tensor, Iterator[_Layer]]:
    n_heads = base.config.n_head
    two = torch.ones(1, 2, device=base.word_embeddings.weight.device)
    bias = base.build_alibi_tensor(two, n_heads, torch.float32)

    def layers() -> Iterator[_Layer]:
        for block in base.h:
            own = block.self_attention
            weight = own.query_key_value.weight.unflatten(0, (n_heads, 3, -1))
            scaled = weight[:, 0] * own.inv_norm_factor
            yield scaled, weight[:, 1], block.input_layernorm

    return bias[:, 0, 1] - bias[:, 0, 0], layers()


def _mpt(base: Any) -> tuple[Tensor, Iterator[_Layer]]:
    n_heads = base.config.n_heads
    bias = base.build_mpt_alibi_tensor(n_heads, 2)

    def layers() -> Iterator[_Layer]:
        for block in base.blocks:
            weight = block.attn.Wqkv.weight.unflatten(0, (3, n_heads, -1))
            yield weight[0] * block.attn.softmax_scale, weight[1], block.norm_1

    return bias[:, 0, 1] - bias[:, 0, 0], layers()


_FAMILIES: dict[str, Callable[[Any], tuple[Tensor, Iterator[_Layer]]]] = {
    "bloom": _bloom,
    "mpt": _mpt,
}
"""Slopes and layers, by the model's type."""
