"""How far heads reach over a response: local heads, global heads, with the sink or not.

The sink at the first token dominates a mean distance: the sets with and without it
share only about half of their heads, so both are given.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.heads import HeadSet
from interp.probes.detector import HEADS
from interp.probes.locality import Distance, GlobalHead

Layers = str | tuple[int, ...] | None
"""Layers by number, "middle" for those of `middle_layers`, or None for all."""

LOCAL, GLOBAL = -1, 1
"""How heads are labelled; 0 is neither."""
SIDES = xr.DataArray(np.array(["local", "global"], dtype=object), dims="side")
SINK = xr.DataArray(
    np.array(["with", "without"], dtype=object), dims="sink", name="sink"
)


@dataclass(frozen=True)
class Span(Distance):
    """Mean distance of the queries of a response, back into the prompt as well.

    It is `distance` where the trace does not say how many tokens are the prompt's.
    """

    name = "span"
    long_name = "head span over the response"
    description = (
        "How many tokens back the head looks from the tokens that were generated, on "
        "average."
    )
    source = "arXiv:2510.13554 Eq. 7; `exclude_sink` is ours"
    by_default = False

    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Distance of every row of the response."""
        rows = super().rows(trace)
        return rows.where(rows["query"] >= trace.attrs.get("prompt_tokens", 0))


@dataclass(frozen=True)
class Reach:
    """Which heads are local and which are global."""

    share: float = 0.3
    """Share of heads on each side."""
    exclude_sink: bool = False
    """Go by the distance without the first key."""
    layers: Layers = None
    """Choose among the heads of these layers only."""

    def __post_init__(self) -> None:
        """Refuse shares that overlap, and layers that are no layers."""
        GlobalHead(self.share)
        if isinstance(self.layers, str) and self.layers != "middle":
            raise InputError(
                f"layers={self.layers!r} was asked for. Choose 'middle', numbers of "
                "layers, or None for all."
            )

    def among(self, n_layers: int) -> tuple[int, ...]:
        """The layers that are looked at, of a model with so many.

        Raises:
            InputError: A layer does not exist.
        """
        if self.layers is None:
            return tuple(range(n_layers))
        if self.layers == "middle":
            return middle_layers(n_layers)
        chosen = tuple(int(layer) for layer in self.layers)
        wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
        if wrong or not chosen:
            raise InputError(
                f"The layers {chosen} were asked for; there are 0 to {n_layers - 1}. "
                "Choose one or more of them."
            )
        return chosen

    def __call__(self, trace: xr.DataTree, n_layers: int | None = None) -> xr.Dataset:
        """Spans and labels of heads.

        Args:
            trace: Of a response, with `distance`, `first_mass` and `learned_sink`.
            n_layers: Layers of the model, if not all are in the trace.

        Returns:
            Along `sink`, with and without the first key: `span` (sink, layer, head) in
            tokens, and `reach` (sink, layer, head): -1 local, 1 global, 0 neither, NaN
            where no head is looked at. `overlap` (side): share of a side's heads that
            are on it both ways.

        Raises:
            NotCapturedError: The trace lacks one of the statistics.
            InputError: A layer does not exist.
        """
        spans = [Span(exclude_sink=each)(trace) for each in (False, True)]
        span = xr.concat(spans, SINK, combine_attrs="drop_conflicts")
        among = self.among(n_layers or span.sizes["layer"])
        sides = GlobalHead(self.share).finish(span.where(span["layer"].isin(among)))
        is_on = sides == xr.DataArray([LOCAL, GLOBAL], coords={"side": SIDES})
        both, own = is_on.all("sink").sum(HEADS), is_on.isel(sink=0).sum(HEADS)
        labelled = {"units": "label", "long_name": "local (-1) or global (1) head"}
        shared = {"units": "fraction", "long_name": "heads of a side both ways"}
        return xr.Dataset(
            {
                "span": span,
                "reach": sides.drop_attrs().assign_attrs(labelled),
                "overlap": (both / own.where(own > 0)).assign_attrs(shared),
            }
        )

    @property
    def sink(self) -> str:
        """Along `sink`: the way that is gone by."""
        return "without" if self.exclude_sink else "with"


def middle_layers(n_layers: int, n: int = 5) -> tuple[int, ...]:
    """Evenly spaced layers of the middle third, fewer where it has fewer.

    Args:
        n_layers: Layers of the model.
        n: How many are wanted.

    Source:
        arXiv:2510.13554, of the maps that its training reads.
    """
    low, high = n_layers // 3, min(2 * n_layers // 3, n_layers - 1)
    spaced = {low + (high - low) * step // max(n - 1, 1) for step in range(n)}
    return tuple(sorted(spaced))


def on_side(labels: xr.DataArray, side: int) -> HeadSet:
    """The heads of one side, `LOCAL` or `GLOBAL`, as interventions take them."""
    at = np.nonzero(labels.transpose(*HEADS).values == side)
    named = (
        labels[dim].values[own].tolist() for dim, own in zip(HEADS, at, strict=True)
    )
    return HeadSet.of(zip(*named, strict=True), labels)
