"""What detectors measured on several texts, and the means and intervals of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.errors import NotCapturedError
from interp.probes.detector import (
    HEADS,
    REPEATED_RANDOM,
    TEXT,
    Detector,
    RowDetector,
)
from interp.uncertainty import (
    BLOCKS,
    BOUNDS,
    LEVEL,
    RESAMPLES,
    block_means,
    bootstrap_interval,
)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Over several texts, or over stretches of a single one; there, what drifts along the
    text, such as distance, has a wide interval.
    """

    level: float = LEVEL
    """Share of resampled means inside an interval."""
    resamples: int = RESAMPLES
    """Number of resamples."""
    seed: int = 0
    """Of the random numbers."""

    def interval(
        self, values: xr.DataArray, dim: str, weights: xr.DataArray | None = None
    ) -> xr.DataArray:
        """As `bootstrap_interval`, with these options."""
        return bootstrap_interval(
            values,
            dim,
            level=self.level,
            resamples=self.resamples,
            seed=self.seed,
            weights=weights,
        )

    def says(self, over: str) -> str:
        """One line for the record."""
        return (
            f"{self.level:.0%} percentile bootstrap over {over}, "
            f"{self.resamples} resamples"
        )


@dataclass(frozen=True)
class Reading:
    """What the detectors of one task measured on one input."""

    name: str
    """Of the input."""
    task: str
    """What the input is: "text" or "repeated_random"."""
    measured: dict[str, xr.DataArray]
    """Over (layer, head), by the detector's name."""
    blocks: dict[str, tuple[xr.DataArray, xr.DataArray]]
    """Means and counts of contiguous queries, of detectors that have rows."""
    sites: dict[str, str]
    """Site that each detector read."""
    skipped: dict[str, str]
    """What could not be measured, and why."""


def read(
    name: str,
    trace: xr.DataTree,
    detectors: Iterable[Detector],
    blocks: int = BLOCKS,
) -> Reading:
    """Run detectors on the trace of one input.

    Args:
        name: Of the input.
        trace: Its trace.
        detectors: Over (layer, head).
        blocks: Contiguous stretches of queries to keep means of, for the interval of
            a single text.
    """
    task = trace.attrs.get("task", TEXT)
    reading = Reading(name, task, {}, {}, {}, {})
    for detector in detectors:
        try:
            measured = detector.measure(trace)
        except NotCapturedError as error:
            reading.skipped[detector.name] = str(error)
            continue
        if not measured.notnull().any():
            reading.skipped[detector.name] = (
                f"no value on {name}: none of its tokens counts. {detector.description}"
            )
        reading.measured[detector.name] = _bare(measured)
        reading.sites[detector.name] = detector.site_name(trace)
        if isinstance(detector, RowDetector):
            means, counts = block_means(detector.rows(trace), blocks=blocks)
            reading.blocks[detector.name] = _bare(means), _bare(counts)
    return reading


def summarize(
    detector: Detector,
    readings: Sequence[Reading],
    inputs: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, xr.DataArray]:
    """A detector's mean over inputs, its interval, and what each input gave.

    Args:
        detector: What was measured.
        readings: Of its task; those that lack it are left out.
        inputs: Names of all inputs, along `text`; NaN where a name is no reading.
        bootstrap: How the interval is made.

    Returns:
        `<name>` (layer, head), `<name>_interval` (layer, head, bound) and
        `<name>_texts` (text, layer, head); nothing if no reading has it.
    """
    name = detector.name
    having = [reading for reading in readings if name in reading.measured]
    if not having:
        return {}
    measured = xr.concat([reading.measured[name] for reading in having], "text")
    measured = measured.assign_coords(text=_strings(reading.name for reading in having))
    mean = detector.labelled(detector.finish(measured.mean("text")))
    mean = mean.assign_attrs(task=detector.task, site=having[0].sites[name])
    bounds, how = _interval(detector, measured, having, bootstrap)
    each = detector.finish(measured).reindex(text=_strings(inputs))
    mean = mean.transpose(*HEADS).assign_attrs(interval=how)
    return {
        name: mean,
        f"{name}_interval": bounds.transpose(*HEADS, "bound").assign_attrs(
            units=mean.units, long_name=f"{mean.long_name}, interval", interval=how
        ),
        f"{name}_texts": each.transpose("text", *HEADS).assign_attrs(
            units=mean.units, long_name=f"{mean.long_name}, of each text"
        ),
    }


def _interval(
    detector: Detector,
    measured: xr.DataArray,
    readings: Sequence[Reading],
    bootstrap: Bootstrap,
) -> tuple[xr.DataArray, str]:
    """The interval of a mean over texts, or over stretches of a single text."""
    if type(detector).finish is not Detector.finish:
        return no_interval(
            measured.isel(text=0, drop=True)
        ), "none: it is a label, not a mean"
    if len(readings) > 1:
        kind = "seeds" if detector.task == REPEATED_RANDOM else "texts"
        how = bootstrap.says(f"{len(readings)} {kind}")
        return bootstrap.interval(measured, "text"), how
    if detector.name not in readings[0].blocks:
        return no_interval(
            measured.isel(text=0, drop=True)
        ), "none: one text, and queries have no own value"
    means, counts = readings[0].blocks[detector.name]
    if means.sizes["block"] < 2:
        return no_interval(
            measured.isel(text=0, drop=True)
        ), "none: one text with too few queries that count"
    over = f"{means.sizes['block']} contiguous stretches of the queries of one text"
    return bootstrap.interval(means, "block", counts), bootstrap.says(over)


def no_interval(values: xr.DataArray) -> xr.DataArray:
    """Bounds of `values` that are not known."""
    bounds = xr.DataArray([np.nan, np.nan], dims="bound", coords={"bound": BOUNDS})
    return xr.zeros_like(values, dtype="float64") + bounds


def _bare(values: xr.DataArray) -> xr.DataArray:
    """Only the coordinates that name heads, and no attributes."""
    extra = set(values.coords) - {*HEADS, "kv_head"}
    return values.drop_vars(extra).drop_attrs()


def _strings(names: Iterable[str]) -> np.ndarray:
    """As objects: Zarr has no stable type of fixed-length strings."""
    return np.array(list(names), dtype=object)
