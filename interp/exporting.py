"""A trace, or a set of heads, as other tools take it.

Views of BertViz and CircuitsVis take whole patterns: trace with
`Capture((Pattern(),))`. Neither package is needed to make what they take.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InputError, NotCapturedError
from interp.heads import HeadSet

FORMATS = ("csv", "parquet")
"""Of tables."""


def to_frames(trace: xr.DataTree) -> dict[str, pd.DataFrame]:
    """Every array of a trace in long tables, one for each node and set of axes.

    Args:
        trace: As `interp.trace` or `interp.open_trace` returns it.

    Returns:
        By the node and its axes below layer and head, such as `self_query`,
        `self_key`, `residual_token`: a row for each cell, its indices and token first.
    """
    frames = {}
    for node, tree in trace.children.items():
        arrays: dict[tuple[str, ...], dict[str, xr.DataArray]] = {}
        for name, array in tree.to_dataset().data_vars.items():
            dims = tuple(map(str, array.dims))
            arrays.setdefault(dims, {})[str(name)] = array
        for dims, own in arrays.items():
            rest = [dim for dim in dims if dim not in ("layer", "head")]
            frame = xr.Dataset(own).to_dataframe(dim_order=list(dims)).reset_index()
            labels = [c for c in frame if c not in own and c not in dims]
            frames["_".join([node, *rest])] = frame[[*dims, *labels, *own]]
    return frames


def write_frames(
    trace: xr.DataTree, folder: str | Path, kind: str = "csv"
) -> list[Path]:
    """Writes the tables of a trace into a folder.

    Args:
        trace: As `to_frames` takes it.
        folder: Made if missing.
        kind: `csv` or `parquet`; the latter needs pyarrow.

    Returns:
        The files.

    Raises:
        InputError: There is no such format, or pyarrow is missing.
    """
    if kind not in FORMATS:
        raise InputError(
            f"Tables are written as {' or '.join(FORMATS)}; asked for {kind!r}. "
            "Choose one of them."
        )
    written = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, frame in to_frames(trace).items():
        path = Path(folder) / f"{name}.{kind}"
        try:
            if kind == "csv":
                frame.to_csv(path, index=False)
            else:
                frame.to_parquet(path, index=False)
        except ImportError as error:
            raise InputError(
                "Parquet was asked for; pandas writes it with pyarrow, which is not "
                "installed. Install pyarrow, or take csv."
            ) from error
        written.append(path)
    return written


def for_circuitsvis(trace: xr.DataTree, layer: int, site: str = "self") -> dict:
    """One layer's patterns for `circuitsvis.attention.attention_heads(**...)`.

    Args:
        trace: With `pattern`.
        layer: Which.
        site: `self` or `encoder`: both sides are the same tokens.

    Returns:
        `attention` `[head, query, key]`, `tokens`, `attention_head_names`, and
        `mask_upper_tri`.

    Raises:
        NotCapturedError: The trace has no patterns or token strings there.
        InputError: There is no such layer, several texts, or two sides.
    """
    if site == "cross":
        raise InputError(
            "CircuitsVis shows one row of tokens; cross-attention has two. Use "
            "for_bertviz."
        )
    patterns = _patterns(trace, site, [layer])
    return {
        "attention": patterns[0],
        "tokens": _tokens(trace, site, "query"),
        "attention_head_names": [f"L{layer}.H{h}" for h in range(len(patterns[0]))],
        "mask_upper_tri": site == "self",
    }


def for_bertviz(trace: xr.DataTree, layers: Iterable[int] | None = None) -> dict:
    """Patterns for `bertviz.head_view(**...)` and `bertviz.model_view(**...)`.

    Args:
        trace: With `pattern` at every site.
        layers: Which; None takes all. A view numbers those it is given from 0.

    Returns:
        `attention`, a tensor `[1, head, query, key]` a layer, and `tokens`; of an
        encoder-decoder `encoder_attention`, `decoder_attention`, `cross_attention`,
        `encoder_tokens` and `decoder_tokens`.

    Raises:
        NotCapturedError: The trace has no patterns or token strings.
        InputError: There is no such layer, or several texts.
    """
    chosen = None if layers is None else list(layers)

    def stack(site: str) -> list[Tensor]:
        own = _patterns(trace, site, chosen)
        return [torch.tensor(each)[None] for each in own]

    if "cross" not in trace.children:
        [site] = [name for name in ("self", "encoder") if name in trace.children]
        return {"attention": stack(site), "tokens": _tokens(trace, site, "query")}
    return {
        "encoder_attention": stack("encoder"),
        "decoder_attention": stack("self"),
        "cross_attention": stack("cross"),
        "encoder_tokens": _tokens(trace, "encoder", "query"),
        "decoder_tokens": _tokens(trace, "self", "query"),
    }


def for_kvpress(full: HeadSet) -> Tensor:
    """The `streaming_mask` of kvpress's `DuoAttentionPress`.

    Args:
        full: Heads that keep the whole cache; a KV head keeps it if any of its query
            heads is among them.

    Returns:
        `[layer, kv_head]`, True where only the first and the recent keys stay.
    """
    grid = full.grid
    mask = torch.ones(grid.n_layers, grid.n_kv_heads, dtype=torch.bool)
    for head in full:
        mask[head.layer, head.head // grid.group] = False
    return mask


def write_duo_attention(full: HeadSet, path: str | Path) -> None:
    """Writes heads as a pattern of DuoAttention, such as full_attention_heads.tsv.

    Args:
        full: Heads that keep the whole cache; a KV head keeps it if any of its query
            heads is among them.
        path: Of the file: a row a layer, tabs between KV heads, 1 for the whole cache.
            Trained gates are written by `interp.probes.gate_patterns.save_pattern`.
    """
    gates = (~for_kvpress(full)).double().numpy()
    part = Path(f"{path}.part")
    np.savetxt(part, gates, fmt="%g", delimiter="\t")
    part.replace(path)


def _patterns(
    trace: xr.DataTree, site: str, layers: list[int] | None
) -> list[np.ndarray]:
    """Patterns `[head, query, key]` of some layers; what nothing sees is 0."""
    node = trace.children.get(site)
    if node is None or "pattern" not in node.data_vars:
        raise NotCapturedError(
            f"Patterns of the site {site} were asked for; the trace has none. Trace "
            "again with Capture((Pattern(),)), up to 2,048 tokens."
        )
    array = node.dataset["pattern"]
    if "sample" in array.dims:
        raise InputError(
            f"A view shows one text; the trace has {array.sizes['sample']}. Trace one."
        )
    known = [int(layer) for layer in array["layer"].values]
    missing = [layer for layer in layers or [] if layer not in known]
    if missing:
        raise InputError(
            f"Layer {missing[0]} was asked for; the trace has {known[0]} to "
            f"{known[-1]}. Choose of these."
        )
    chosen = array.sel(layer=known if layers is None else layers)
    values = chosen.transpose("layer", "head", "query", "key").values
    return list(np.nan_to_num(values, nan=0.0))


def _tokens(trace: xr.DataTree, site: str, dim: str) -> list[str]:
    coords: Any = trace[site].to_dataset().coords
    if f"{dim}_token" not in coords:
        raise NotCapturedError(
            f"A view needs the tokens of the site {site}; the trace has no strings. "
            "Trace with a tokenizer."
        )
    return [str(token) for token in coords[f"{dim}_token"].values]
