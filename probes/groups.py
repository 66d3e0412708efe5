"""KV groups: query heads that share a key and a value, and so a cache."""

from collections.abc import Hashable

import xarray as xr

from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.probes.agreement import agreement
from interp.probes.detector import HEADS
from interp.probes.reading import Bootstrap

INDUCTION, ECHO = 0.14, 0.01
"""Shares of the groups that are kept for one score and for the other."""


def over_groups(signal: xr.DataArray) -> xr.DataArray:
    """Each KV group as one head, with the largest value of its query heads.

    Args:
        signal: Over (layer, head), with `kv_head` along the heads; without it every
            head is a group of its own.

    Returns:
        Over (layer, head), where a head is a KV head; NaN where all its values are.

    Raises:
        InputError: Other dimensions.
    """
    HeadGrid.of(signal)  # refuses other dimensions
    if "kv_head" not in signal.coords:
        return signal
    largest = signal.groupby("kv_head").max("head").rename(kv_head="head")
    return largest.transpose(*HEADS).assign_attrs(signal.attrs)


def group_agreement(
    heads: xr.Dataset, *, bootstrap: Bootstrap | None = None
) -> xr.Dataset:
    """As `agreement`, over KV groups instead of heads.

    Gates, and caches, are of groups: their heads are no independent samples.

    Args:
        heads: As `agreement` takes it.
        bootstrap: How intervals are made.
    """
    grouped: dict[Hashable, xr.DataArray] = {
        name: over_groups(array)
        for name, array in heads.items()
        if set(array.dims) == set(HEADS)
    }
    return agreement(xr.Dataset(grouped), bootstrap=bootstrap)


def razor_groups(
    scores: xr.Dataset, *, induction: float = INDUCTION, echo: float = ECHO
) -> HeadSet:
    """The heads that have to keep a full cache, by two scores on repeated tokens.

    A group scores what the best of its heads does. Kept are the strongest in induction
    and the strongest in echo, all heads of each. Where accuracy suffers, the authors
    raise `induction` by 0.03 at a time.

    Args:
        scores: `induction` and `echo` over (layer, head), as `detect` gives them.
        induction: Share of the groups, rounded, at least one.
        echo: The same for echo.

    Returns:
        Whole groups: those of induction, strongest first, then those that echo adds.

    Raises:
        InputError: A score is missing, or a share is not in (0, 1].

    Source:
        RazorAttention (arXiv:2407.15891).
    """
    missing = [name for name in ("induction", "echo") if name not in scores]
    if missing:
        raise InputError(
            f"Groups are chosen by induction and echo; {' and '.join(missing)} is not "
            "there. Pass detect(model, ['induction', 'echo'])."
        )
    grid = HeadGrid.of(scores["induction"])
    kept = [
        HeadSet.top(over_groups(scores[name]), share=share)
        for name, share in (("induction", induction), ("echo", echo))
    ]
    groups = kept[0] | kept[1]
    members = [(each.layer, each.head * grid.group) for each in groups]
    return HeadSet.of(members, grid).as_kv_groups()
