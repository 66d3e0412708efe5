"""KV groups: query heads that share a key and a value, and so a cache."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.capture import Capture, union
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.probes.agreement import agreement, membership
from interp.probes.detector import HEADS, REPEATED_RANDOM, Detector
from interp.probes.patterns import Echo, Induction
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


@dataclass(frozen=True)
class RazorGroups(Detector):
    """Whether a head has to keep a full cache, on repeated random tokens."""

    induction: float = INDUCTION
    """Share of the KV groups that are kept for induction."""
    echo: float = ECHO
    """Share of the KV groups that are kept for echo."""

    name = "razor"
    unit = "fraction"
    long_name = "kept with a full cache"
    description = (
        "Share of the runs on repeated random tokens in which the head's KV group is "
        "among the strongest by induction or by echo, and so keeps a full cache."
    )
    source = (
        "RazorAttention (arXiv:2407.15891): 14 % of the groups by induction, 1 % by "
        "echo, each group as its best head; chosen anew in each run"
    )
    task = REPEATED_RANDOM
    by_default = False

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not (0 < self.induction <= 1 and 0 < self.echo <= 1):
            raise InputError(
                "RazorGroups keeps shares of the groups, above 0 and up to 1; got "
                f"induction={self.induction} and echo={self.echo}. The paper has "
                f"{INDUCTION} and {ECHO}."
            )

    @property
    def needs(self) -> Capture:
        """What the two scores need."""
        return union([each.needs for each in self._scores])

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """1 for a head that is kept, else 0.

        Raises:
            NotCapturedError: The trace is not of repeated random tokens.
        """
        scores = xr.Dataset({each.name: each.measure(trace) for each in self._scores})
        if "sample" not in scores.dims:
            return self._kept(scores)
        samples = scores.sizes["sample"]
        return xr.concat(
            [self._kept(scores.isel(sample=n)) for n in range(samples)], "sample"
        )

    @property
    def _scores(self) -> tuple[Detector, Detector]:
        return Induction(site=self.site), Echo(site=self.site)

    def _kept(self, scores: xr.Dataset) -> xr.DataArray:
        scores = scores.transpose(*HEADS, ...)
        known = scores["induction"].notnull() & scores["echo"].notnull()
        if not known.any():
            return scores["induction"].where(known)
        kept = razor_groups(scores, induction=self.induction, echo=self.echo)
        is_kept = known.copy(data=membership(kept, known).astype(np.float64))
        return is_kept.where(known)
