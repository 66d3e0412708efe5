"""Query and key of every head as a trace records them, and the calls they give back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.calls import KeptCall, require, require_site
from interp.errors import InputError, NotCapturedError
from interp.kernels import statistics
from interp.kernels.definitions import QUERY, Array, Lse, Statistic
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule

HEAD = ("layer", "head")
REMEDY = "Rebuild it by a forward: interp.long_map(model, text, layer=..., head=...)."


@dataclass(frozen=True)
class Vectors(Statistic):
    """Query and key as attended, and the numbers of the rules between them.

    NaN throughout a layer whose rules are more than numbers: a position bias, chunks,
    packed texts, prefixes, holes of padding.
    """

    arrays = (
        Array("q", (*QUERY, "d_head"), "activation", "query as attended"),
        Array("k", ("layer", "group", "key", "d_head"), "activation", "key, likewise"),
        Array("scale", HEAD, "1", "factor on q.k"),
        Array("softcap", HEAD, "1", "bound of the tanh of the scores; NaN without"),
        Array("sink_logit", HEAD, "nats", "learned sink; NaN without"),
        Array("ahead", HEAD, "tokens", "how far a query sees ahead; NaN any"),
        Array("behind", HEAD, "tokens", "how far a query sees back; NaN any"),
    )

    @staticmethod
    def of(call: AttentionCall) -> dict[str, Tensor]:
        """The arrays of a call, `[batch, ...]` by name."""
        shape = call.n_batch, call.n_heads
        query, key = call.query, call.key
        score, mask = call.score, call.mask

        def each_head(value: float | Tensor | None) -> Tensor:
            value = torch.nan if value is None else value
            return torch.as_tensor(value, dtype=torch.float32).expand(shape)

        if _told_by_numbers(call):
            query = _real(query, mask.query_padding)
            key = _real(key, mask.key_padding)
            scale = each_head(score.scale)
        else:
            query, key = (torch.full_like(t, torch.nan) for t in (query, key))
            scale = each_head(None)
        return {
            "q": query,
            "k": key,
            "scale": scale,
            "softcap": each_head(score.softcap),
            "sink_logit": each_head(score.sink_logits),
            "ahead": each_head(mask.ahead),
            "behind": each_head(mask.behind),
        }


def _told_by_numbers(call: AttentionCall) -> bool:
    mask = call.mask
    extras = (call.score.position_bias, mask.function, mask.dense)
    if any(extra is not None for extra in extras) or call.query.shape[-1] == 0:
        return False
    narrowed = (call.narrow(*sample).mask for sample in call.samples())
    return all(own.is_band for own in narrowed)


def _real(vectors: Tensor, real: Tensor | None) -> Tensor:
    """NaN where there is padding."""
    if real is None:
        return vectors
    return vectors.masked_fill(~real.to(vectors.device)[:, None, :, None], torch.nan)


def kept(trace: xr.DataTree, *, layer: int, site: str = "self") -> KeptCall:
    """The attention call of one layer that a trace has recorded.

    Args:
        trace: Of one text, traced with `Capture(vectors=True)`.
        layer: Which one, from 0.
        site: `self`, `cross` or `encoder`.

    Raises:
        InputError: No such layer or site, or a trace of several texts.
        NotCapturedError: The trace holds no vectors, or this layer's rules are more
            than numbers.
    """
    node = site_of(trace, site)
    if not {array.name for array in Vectors.arrays} <= set(node.data_vars):
        raise NotCapturedError(
            "Exact weights were asked for; the trace holds no q and k. Trace again "
            f"with Capture(vectors=True). {REMEDY}"
        )
    require("Layer", layer, node.sizes["layer"])
    node = node.isel(layer=layer)
    scale, softcap, sink = (node[n].values for n in ("scale", "softcap", "sink_logit"))
    if np.isnan(scale).all():
        raise NotCapturedError(
            f"Layer {layer} has rules that no trace holds: a position bias, chunks, "
            f"packed texts or prefixes. {REMEDY}"
        )
    heads = np.flatnonzero(np.isfinite(scale))
    query, key = (_present(node[name].values)[None] for name in ("q", "k"))
    score = ScoreRule(
        scale=float(scale[0]),
        softcap=None if np.isnan(softcap[0]) else float(softcap[0]),
        sink_logits=None if np.isnan(sink[0]) else torch.from_numpy(sink[heads]),
    )
    ahead, behind = (node[name].values[0] for name in ("ahead", "behind"))
    mask = MaskRule(
        query.shape[2],
        key.shape[2],
        ahead=None if np.isnan(ahead) else int(ahead),
        behind=None if np.isnan(behind) else int(behind),
    )
    call = AttentionCall(query, key, key[..., :0], score, mask, site != "cross")
    if "lse" in node:
        lse = torch.from_numpy(node["lse"].values[heads, : query.shape[2]])[None]
        lse = lse.nan_to_num(-torch.inf)
    else:
        lse = statistics.compute(call, [Lse()])["lse"].nan_to_num(-torch.inf)
    queried, read = strings(node, "query"), strings(node, "key")
    return KeptCall(call, lse, queried, read, about(trace, site, layer))


def _present(vectors: np.ndarray) -> Tensor:
    """Without heads, tokens and channels that are NaN throughout, and do not exist."""
    known = ~np.isnan(vectors)
    for axis, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        vectors = vectors.compress(known.any(others), axis)
    return torch.from_numpy(vectors)


def site_of(trace: xr.DataTree, site: str) -> xr.Dataset:
    """The node of a site, of a trace of one text.

    Raises:
        InputError: There is none, or several texts were traced.
    """
    require_site(site, [name for name in trace.children if name != "residual"])
    node = trace[site].to_dataset()
    if "sample" in node.dims:
        raise InputError(
            f"A map is of one text; the trace has {node.sizes['sample']}. Trace one."
        )
    return node


def strings(node: xr.Dataset, dim: str) -> tuple[str, ...]:
    """Tokens along an axis; empty where they are no tokens."""
    name = f"{dim}_token"
    return tuple(map(str, node[name].values)) if name in node.coords else ()


def about(trace: xr.DataTree, site: str, layer: int) -> dict[str, Any]:
    """What a map of the trace is of."""
    named = ("model", "model_hash", "input_hash")
    known = {name: trace.attrs[name] for name in named if name in trace.attrs}
    return {**known, "site": site, "layer": layer}
