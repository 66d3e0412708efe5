"""How detectors agree: whether they rank the heads alike, and choose the same ones.

Heads of a layer are no independent samples: intervals resample layers, and chance
moves whole layers. Depth alone makes detectors agree that rise or fall with it; what
remains of that among the heads of a layer is told beside it.
"""

import json
from collections import defaultdict
from collections.abc import Hashable
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import hypergeom

from interp.errors import InputError
from interp.heads import HeadId, HeadSet
from interp.probes.detector import HEADS
from interp.probes.ranks import correlate
from interp.probes.reading import Bootstrap
from interp.significance import holm
from interp.uncertainty import BOUNDS

SHARE = 0.05
"""Share of the heads that counts as a detector's own."""

PAIRS = ("detector", "other")


def comparable(heads: xr.Dataset) -> tuple[xr.Dataset, dict[str, str]]:
    """The signals that rank heads.

    Args:
        heads: From `detect`, or the node `heads` of an atlas; only what is over
            (layer, head) is looked at.

    Returns:
        The signals, and why others are left out: labels, and what is unknown or the
        same at all heads.
    """
    kept: dict[Hashable, xr.DataArray] = {}
    left_out: dict[str, str] = {}
    for name, array in heads.data_vars.items():
        if set(array.dims) != set(HEADS):
            continue
        array = array.transpose(*HEADS).astype(np.float64)
        array = array.where(np.isfinite(array))
        values = array.values[array.notnull().values]
        if array.attrs.get("units") == "label" or "flag_values" in array.attrs:
            left_out[str(name)] = "it is a label, not a quantity"
        elif values.size == 0:
            left_out[str(name)] = "it has no value at any head"
        elif values.min() == values.max():
            left_out[str(name)] = f"it is {values[0]:g} at every head"
        else:
            kept[name] = array
    return xr.Dataset(kept), left_out


def agreement(heads: xr.Dataset, *, bootstrap: Bootstrap | None = None) -> xr.Dataset:
    """Spearman's rank correlation of every two detectors over the heads.

    A head that lacks one of the two values is left out of that pair.

    Args:
        heads: As `comparable` takes it.
        bootstrap: How intervals are made, and the seed of the shuffles.

    Returns:
        Over (detector, other), symmetric: `rho` in [-1, 1]; `rho_interval` with
        `bound`, NaN for heads of a single layer; `rho_within`, the same for ranks less
        the mean rank of their layer; `n_heads` that have both values; `p`, how often a
        shuffle of the layers gives as large a |rho|; `p_holm`, corrected over all
        pairs. On the diagonal nothing is tested. The attribute `left_out` (JSON) says
        which signals are missing, and why.

    Raises:
        InputError: Fewer than two signals.

    Source:
        Spearman 1904; a bootstrap of clusters (Davison and Hinkley 1997, section 3.8):
        resampled layers bring all their heads. Neighboring layers are alike, which no
        shuffle keeps: p is a little too small.
    """
    bootstrap = bootstrap or Bootstrap()
    signals, left_out = comparable(heads)
    names = [str(name) for name in signals]
    if len(names) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InputError(
            "Agreement takes at least two signals over (layer, head); got "
            f"{', '.join(names) or 'none'}{f' (left out: {why})' if why else ''}. "
            "Run more detectors."
        )
    grid = signals.to_dataarray().values
    known = np.isfinite(grid)
    shape = (len(names), len(names))
    rho, within = np.eye(len(names)), np.eye(len(names))
    rho[rho == 0] = within[within == 0] = np.nan
    p, (low, high) = np.full(shape, np.nan), np.full((2, *shape), np.nan)
    n_heads = np.zeros(shape, dtype=int)
    np.fill_diagonal(n_heads, known.sum((1, 2)))
    for pairs in _by_heads(known):
        chosen = sorted({index for pair in pairs for index in pair})
        mask = known[pairs[0][0]] & known[pairs[0][1]]
        layers = mask.any(1)
        found = correlate(
            grid[chosen][:, layers],
            mask[layers],
            level=bootstrap.level,
            resamples=bootstrap.resamples,
            seed=bootstrap.seed,
        )
        for first, second in pairs:
            here = chosen.index(first), chosen.index(second)
            for cell in ((first, second), (second, first)):
                rho[cell], within[cell] = found.rho[here], found.within[here]
                low[cell], high[cell] = found.low[here], found.high[here]
                p[cell], n_heads[cell] = found.p[here], mask.sum()
    upper = np.triu(np.ones(shape, dtype=bool), 1)
    p_holm = holm(xr.DataArray(np.where(upper, p, np.nan))).values
    arrays = {
        "rho": (rho, "rank correlation"),
        "rho_within": (within, "rank correlation within layers"),
        "p": (p, "p of the rank correlation"),
        "p_holm": (np.where(upper, p_holm, p_holm.T), "p, corrected over all pairs"),
    }
    labels = np.array(names, dtype=object)
    return xr.Dataset(
        {
            **{
                name: (PAIRS, values, {"units": "1", "long_name": about})
                for name, (values, about) in arrays.items()
            },
            "rho_interval": (
                (*PAIRS, "bound"),
                np.stack([low, high], axis=-1),
                {"units": "1", "long_name": "rank correlation, interval"},
            ),
            "n_heads": (PAIRS, n_heads, {"units": "heads", "long_name": "heads"}),
        },
        coords={"detector": labels, "other": labels, "bound": BOUNDS},
        attrs={
            "interval": bootstrap.says("layers"),
            "level": bootstrap.level,
            "resamples": bootstrap.resamples,
            "seed": bootstrap.seed,
            "left_out": json.dumps(left_out),
        },
    )


def top_sets(
    heads: xr.Dataset, share: float = SHARE
) -> tuple[dict[str, HeadSet], dict[str, str]]:
    """Each detector's heads with the largest values.

    Args:
        heads: As `comparable` takes it.
        share: Of the heads that have a value, as in `HeadSet.top`.

    Returns:
        The sets, and why others are left out: as `comparable` says; or because the set
        ends among equal values, so that the order of heads would choose.

    Raises:
        InputError: The share is no fraction in (0, 1].
    """
    signals, left_out = comparable(heads)
    sets: dict[str, HeadSet] = {}
    for name, array in signals.items():
        top = HeadSet.top(array, share=share)
        ranked = np.sort(array.values[array.notnull().values])[::-1]
        last, after = ranked[len(top) - 1], ranked[len(top) : len(top) + 1]
        if last in after:
            n_equal = int((ranked == last).sum())
            left_out[str(name)] = (
                f"its largest {share:.0%} end among {n_equal} heads of equal value"
            )
        else:
            sets[str(name)] = top
    return sets, left_out


def intersections(heads: xr.Dataset, share: float = SHARE) -> pd.DataFrame:
    """Which heads are in exactly which detectors' top sets: what an UpSet plot shows.

    Args:
        heads: As `comparable` takes it.
        share: Of the heads that have a value.

    Returns:
        A row for each combination that occurs, the largest first: `detectors` (tuple),
        `size`, `heads` ("L1.H2,L3.H4"). The sizes add up to that of the union. The
        attribute `left_out` says which detectors are missing, and why.

    Raises:
        InputError: The share is no fraction in (0, 1].

    Source:
        Lex et al. 2014, "UpSet: visualization of intersecting sets".
    """
    sets, left_out = top_sets(heads, share)
    members: dict[HeadId, list[str]] = defaultdict(list)
    for name, top in sets.items():
        for head in top:
            members[head].append(name)
    found: dict[tuple[str, ...], list[HeadId]] = defaultdict(list)
    for head, names in sorted(members.items()):
        found[tuple(names)].append(head)
    ranked = sorted(found.items(), key=lambda each: (-len(each[1]), len(each[0])))
    rows = [(names, len(ids), ",".join(map(str, ids))) for names, ids in ranked]
    table = pd.DataFrame(rows, columns=["detectors", "size", "heads"])
    table.attrs = {"share": share, "left_out": left_out}
    return table


def overlap(heads: xr.Dataset, share: float = SHARE) -> pd.DataFrame:
    """How many heads the top sets of every two detectors share.

    Args:
        heads: As `comparable` takes it.
        share: Of the heads that have a value.

    Returns:
        A row a pair: `detector`, `other`; `n_heads` that have both values, among which
        all is counted; `size`, `other_size`; `overlap`; `expected` if heads were drawn
        at random, `expected_within` if as many were drawn in each layer; `jaccard`,
        overlap over union; `p`, how often chance shares as many or more
        (hypergeometric), `p_holm`, corrected over all pairs. The attribute `left_out`
        says which detectors are missing, and why.

    Raises:
        InputError: The share is no fraction in (0, 1].
    """
    signals, _ = comparable(heads)
    sets, left_out = top_sets(heads, share)
    chosen = {name: membership(top, signals[name]) for name, top in sets.items()}
    rows = []
    for first, second in combinations(sets, 2):
        joint = (signals[first].notnull() & signals[second].notnull()).values
        each = joint.sum(1)  # a layer
        a, b = ((chosen[name] & joint).sum(1) for name in (first, second))
        both = int((chosen[first] & chosen[second]).sum())
        n, size, other = int(each.sum()), int(a.sum()), int(b.sum())
        within = float((a * b / np.maximum(each, 1)).sum())
        rows.append(
            {
                "detector": first,
                "other": second,
                "n_heads": n,
                "size": size,
                "other_size": other,
                "overlap": both,
                "expected": size * other / max(n, 1),
                "expected_within": within,
                "jaccard": both / max(size + other - both, 1),
                "p": float(hypergeom.sf(both - 1, n, size, other)),
            }
        )
    counts = ("n_heads", "size", "other_size", "overlap", "expected", "expected_within")
    table = pd.DataFrame(rows, columns=[*PAIRS, *counts, "jaccard", "p"])
    p = xr.DataArray(table["p"].to_numpy(dtype=np.float64), dims="pair")
    table["p_holm"] = holm(p).values
    table.attrs = {"share": share, "left_out": left_out}
    return table


def _by_heads(known: np.ndarray) -> list[list[tuple[int, int]]]:
    """Pairs of signals, together where the same heads have both values.

    Args:
        known: `[signal, layer, head]`; pairs without a common head are left out.
    """
    groups: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for first, second in combinations(range(len(known)), 2):
        mask = known[first] & known[second]
        if mask.any():
            groups[mask.tobytes()].append((first, second))
    return list(groups.values())


def membership(top: HeadSet, signal: xr.DataArray) -> np.ndarray:
    """Whether each head, over (layer, head), is in the set."""
    chosen = set(top)
    layers, heads = signal["layer"].values.tolist(), signal["head"].values.tolist()
    return np.array([[HeadId(row, head) in chosen for head in heads] for row in layers])
