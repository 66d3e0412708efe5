"""What a detector is, and how it reads a trace.

A detector is a pure function of a trace: it never sees a model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

import xarray as xr

from interp.capture import Capture
from interp.errors import NotCapturedError
from interp.kernels.definitions import STATISTICS

HEADS = ("layer", "head")
TEXT, REPEATED_RANDOM = "text", "repeated_random"


@dataclass(frozen=True)
class Detector(ABC):
    """One measured quantity of every head, or of every token; its fields are options.

    A subclass states `name`, `unit`, `long_name`, `description` and `needs`, and
    writes `measure`.
    """

    name: ClassVar[str]
    """Key in the registry, in results and in tables."""
    unit: ClassVar[str]
    """Unit of the values, "fraction" for a share between 0 and 1."""
    long_name: ClassVar[str]
    """Axis title."""
    description: ClassVar[str]
    """One sentence on how to read the number."""
    source: ClassVar[str] = ""
    """Paper and section, and where this differs."""
    task: ClassVar[str] = TEXT
    """What the atlas traces for it: "text" or "repeated_random"."""
    dims: ClassVar[tuple[str, ...]] = HEADS
    """Dimensions of the result for one text."""
    by_default: ClassVar[bool] = True
    """Whether it runs unasked."""

    site: str | None = field(default=None, kw_only=True)
    """Attention site; None takes `self`, else `encoder`, as in `site_of`."""

    @property
    @abstractmethod
    def needs(self) -> Capture:
        """What the trace has to hold."""

    @abstractmethod
    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """The quantity whose mean over texts is meaningful."""

    def finish(self, measured: xr.DataArray) -> xr.DataArray:
        """The reported value, from what was measured or its mean over texts."""
        return measured

    def __call__(self, trace: xr.DataTree) -> xr.DataArray:
        """The labelled result.

        Raises:
            NotCapturedError: The trace lacks something in `needs`.
        """
        values = self.labelled(self.finish(self.measure(trace)))
        return values.assign_attrs(site=self.site_name(trace))

    def site_name(self, trace: xr.DataTree) -> str:
        """Name of the node that is read."""
        return str(site_of(trace, self.site).name)

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """`values` under the detector's name, with unit, source and options."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["site"]
        return (
            values.rename(self.name)
            .drop_attrs(deep=False)
            .assign_attrs(
                units=self.unit,
                long_name=self.long_name,
                source=self.source,
                description=self.description,
                **options,
            )
        )


@dataclass(frozen=True)
class RowDetector(Detector):
    """A detector that is a mean over queries, which gives one text an interval too."""

    @abstractmethod
    def rows(self, trace: xr.DataTree) -> xr.DataArray:
        """Value of every query; NaN where the query does not count."""

    def measure(self, trace: xr.DataTree) -> xr.DataArray:
        """Mean over the queries that count; NaN where none does."""
        return self.rows(trace).mean("query", dtype="float64")


def site_of(trace: xr.DataTree, site: str | None = None) -> xr.DataTree:
    """The trace's node of an attention site.

    Args:
        trace: As `interp.trace` returns it.
        site: `self`, `cross` or `encoder`; None takes `self`, else `encoder`. A
            decoder that was given one token says nothing, so the encoder stands in.

    Raises:
        NotCapturedError: The trace has no such site.
    """
    wanted = (site,) if site else ("self", "encoder")
    found = [trace.children[name] for name in wanted if name in trace.children]
    for node in found:
        if max(node.sizes.get(dim, 0) for dim in ("query", "key")) > 1:
            return node
        if node is found[-1]:
            return node
    raise NotCapturedError(
        f"Asked for the site {' or '.join(wanted)}; the trace holds "
        f"{', '.join(trace.children) or 'no node'}. Choose one of its sites, or trace "
        "with at least one statistic."
    )


def statistic(
    trace: xr.DataTree, name: str, site: str | None = None, **parameters: int
) -> xr.DataArray:
    """An array of an attention site, captured with the given parameters.

    Raises:
        NotCapturedError: The trace has no such site, or the site no such array, or
            the array was captured with other parameters.
    """
    node = site_of(trace, site)
    options = ", ".join(f"{key}={value}" for key, value in parameters.items())
    kind = STATISTICS[name].__name__
    if kind == "Edges":
        remedy = "Trace again with Capture(edges=TokenEdges())."
    else:
        remedy = f"Trace again with Capture(statistics=({kind}({options}),))."
    if name not in node.data_vars:
        raise NotCapturedError(
            f"Asked for {name} at the site {node.name}; the trace holds "
            f"{', '.join(map(str, node.data_vars)) or 'nothing'}. {remedy}"
        )
    array = node.dataset[name]
    for key, value in parameters.items():
        if array.attrs.get(key, value) != value:
            raise NotCapturedError(
                f"Asked for {name} with {key}={value}; the trace has {key}="
                f"{array.attrs[key]}. {remedy}"
            )
    return array


def edge(trace: xr.DataTree, label: str, site: str | None = None) -> xr.DataArray:
    """Mass of every query on one kind of target key.

    Raises:
        NotCapturedError: The trace has no such edge.
    """
    edges = statistic(trace, "edges", site)
    if label not in edges["edge"].values:
        raise NotCapturedError(
            f"Asked for the edge {label}; the trace holds "
            f"{', '.join(map(str, edges['edge'].values)) or 'none'}. Trace again with "
            f"Capture(edges=TokenEdges(({label!r},)))."
        )
    return edges.sel(edge=label, drop=True)
