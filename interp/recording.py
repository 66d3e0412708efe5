"""Takes what the tap and the hooks see to its labelled place, layer by layer."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp import residual
from interp.anatomy import Site
from interp.capture import Capture
from interp.inputs import Inputs, Side, token_edges
from interp.kernels.definitions import Array, Edges, Statistic
from interp.models import Model
from interp.storage import Coordinates, Field, Memory, Store
from interp.tap import Visit
from interp.transfer import Transfer
from interp.vectors import Vectors

CROSS = "positions of cross-attention"

Progress = Callable[[int, int], None]
"""Called with the layers done and the layers in all."""


class Recorder:
    """Takes what the tap and the hooks see, in each text's own frame, to its place."""

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        capture: Capture,
        room: Memory | Store,
        progress: Progress | None,
        impl: str,
    ) -> None:
        self.model, self.inputs, self.capture = model, inputs, capture
        self.room, self.progress, self.impl = room, progress, impl
        self.transfer = Transfer(room.write, int(model.device.type == "cuda"))
        self.skipped: list[dict[str, str]] = []
        self.edges = {
            site: None
            if capture.edges is None or site == "cross"
            else _on(model.device, token_edges(capture.edges, inputs.sides(site)[0]))
            for site in model.anatomy.site_names
        }
        self.created: set[str] = set()
        self.implementations: set[str] = set()
        self.calls: dict[str, int] = {}
        self.n_layers = len(model.anatomy.sites)
        self.n_done = 0

    def watch(self, stack: ExitStack) -> None:
        """Hooks the residual stream of each stack, where that is asked for."""
        if not self.capture.residual:
            return
        for node, sites in residual.stacks(self.model.anatomy):
            site = sites[0]
            watched = residual.watch(
                self.model.module,
                self.model.anatomy,
                sites,
                self._spans(self.inputs.sides(site)[0]),
                lambda layer, parts, node=node, site=site: self._stream(
                    node, site, layer, parts
                ),
            )
            stack.enter_context(watched)

    def wanted(self, site: Site) -> list[Statistic]:
        """Statistics to compute at the next call of a site; none if they are there."""
        layer = self.calls.get(site.name, -1) + 1
        return [] if self.room.done(site.name, layer) else self.asked(site)

    def asked(self, site: Site) -> list[Statistic]:
        """Statistics of a site that the trace is to hold."""
        wanted = list(self.capture.statistics)
        if site.name == "cross":
            lost = [s.name for s in wanted if s.positional]
            wanted = [s for s in wanted if not s.positional]
            if lost and not any(s["what"] == CROSS for s in self.skipped):
                why = f"query and key have no position in common: {', '.join(lost)}"
                self.skipped.append({"what": CROSS, "why": why})
        edges = self.edges[site.name]
        return wanted if edges is None else [*wanted, edges]

    def visit(self, visit: Visit) -> None:
        """Keeps the statistics of one attention call."""
        site = visit.site.name
        layer = self.calls[site] = self.calls.get(site, -1) + 1
        self.implementations.add(visit.impl)
        wanted = [] if self.room.done(site, layer) else self._specs(visit)
        if wanted:
            specs = {array.name: (array, s) for s in wanted for array in s.arrays}
            vectors = Vectors.of(visit.call) if self.capture.vectors else {}
            arrays = visit.arrays | vectors
            own = _own_frame(arrays, wanted, visit.call.samples())
            self._write_site(site, layer, specs, own)
        self.n_done += 1
        if self.progress is not None:
            self.progress(self.n_done, max(self.n_layers, self.n_done))

    def _specs(self, visit: Visit) -> list[Statistic]:
        edges = self.edges[visit.site.name]
        asked = [*self.capture.statistics, *([] if edges is None else [edges])]
        found: list[Statistic] = [s for s in asked if s.name in visit.arrays]
        return [*found, Vectors()] if self.capture.vectors else found

    def _write_site(
        self,
        site: str,
        layer: int,
        specs: dict[str, tuple[Array, Statistic]],
        arrays: dict[str, Tensor],
    ) -> None:
        sites = self.model.anatomy.at(site)
        n_layers, n_heads = len(sites), max(s.n_heads for s in sites)
        most = {"head": n_heads, "group": max(s.n_kv_heads for s in sites)}
        most["d_head"] = max(s.d_head for s in sites)
        n_layers = max(n_layers, self._repeats(site))
        if site not in self.created:
            fields = {
                name: self._field(array, statistic, arrays[name], n_layers, most)
                for name, (array, statistic) in specs.items()
            }
            self.room.create(site, fields, self._coords(site, fields, n_heads))
            self.created.add(site)
        padded = {
            name: _padded(values, most, specs[name][0])
            for name, values in arrays.items()
        }
        self.transfer.send(site, layer, self._squeezed(padded))

    def _repeats(self, site: str) -> int:
        """Layers when the model calls one attention module for each (ALBERT)."""
        n_modules = len(self.model.anatomy.at(site))
        return self.model.anatomy.n_layers if n_modules == 1 else n_modules

    def _field(
        self,
        array: Array,
        statistic: Statistic | None,
        values: Tensor,
        n_layers: int,
        most: dict[str, int] | None = None,
    ) -> Field:
        sizes = dict(zip(array.dims[1:], values.shape[1:], strict=True))
        sizes |= {"layer": n_layers, **(most or {})}
        dims, shape = array.dims, tuple(sizes[dim] for dim in array.dims)
        if self.inputs.is_batch:
            dims, shape = ("sample", *dims), (values.shape[0], *shape)
        attrs = {"units": array.unit, "long_name": array.long_name}
        if statistic is not None:
            attrs |= {"source": statistic.source, **statistic.parameters}
        else:
            attrs["source"] = residual.SOURCE
        dtype = np.dtype(np.int32 if array.integer else np.float32)
        return Field(dims, shape, dtype, attrs)

    def _coords(self, site: str, fields: dict[str, Field], n_heads: int) -> Coordinates:
        sizes = {d: n for f in fields.values() for d, n in f.sizes}
        coords: Coordinates = {
            dim: ((dim,), np.arange(sizes[dim]))
            for dim in sizes
            if dim not in ("edge",)
        }
        sites = self.model.anatomy.at(site)
        group = sites[0].n_heads // sites[0].n_kv_heads
        coords["kv_head"] = (("head",), np.arange(n_heads) // group)
        windows = [np.nan if s.window is None else float(s.window) for s in sites]
        if len(windows) == sizes["layer"]:
            coords["window"] = (("layer",), np.array(windows))
            chunks = [np.nan if s.chunk is None else float(s.chunk) for s in sites]
            coords["chunk"] = (("layer",), np.array(chunks))
        edges = self.edges[site]
        if edges is not None and "edge" in sizes:
            coords["edge"] = (("edge",), _strings(edges.labels))
        for dim, side in zip(("query", "key"), self.inputs.sides(site), strict=True):
            if dim in sizes:
                coords |= self._tokens(f"{dim}_token", dim, side, sizes[dim])
        return coords

    def _tokens(self, name: str, dim: str, side: Side, size: int) -> Coordinates:
        if not side.text or max(map(len, side.text)) != size:
            return {}
        if not self.inputs.is_batch:
            return {name: ((dim,), _strings(side.text[0]))}
        rows = [list(text) + [""] * (size - len(text)) for text in side.text]
        lengths = np.array([len(text) for text in side.text])
        return {
            name: (("sample", dim), _strings(rows)),
            f"{dim}_length": (("sample",), lengths),
        }

    def _stream(
        self, node: str, site: str, layer: int, parts: list[dict[str, Tensor]]
    ) -> None:
        if self.room.done(node, layer):
            return
        arrays = {
            array.name: _stacked([part[array.name] for part in parts], array)
            for array in residual.ARRAYS
        }
        if node not in self.created:
            n_layers = len(residual.stack(self.model.module, self.model.anatomy, site))
            fields = {
                array.name: self._field(array, None, arrays[array.name], n_layers + 1)
                for array in residual.ARRAYS
            }
            sizes = {d: n for f in fields.values() for d, n in f.sizes}
            coords: Coordinates = {d: ((d,), np.arange(n)) for d, n in sizes.items()}
            side = self.inputs.sides(site)[0]
            coords |= self._tokens("token_text", "token", side, sizes["token"])
            self.room.create(node, fields, coords)
            self.created.add(node)
        self.transfer.send(node, layer, self._squeezed(arrays))

    def _spans(self, side: Side) -> list[slice]:
        return side.spans or [slice(None)] * self.inputs.n_samples

    def _squeezed(self, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the sample axis for a single text."""
        if self.inputs.is_batch:
            return arrays
        return {name: values[0] for name, values in arrays.items()}


def _on(device: torch.device, edges: Edges | None) -> Edges | None:
    """Edges whose targets are where they are used, so that no layer copies them."""
    if edges is None:
        return None
    targets = [(n, torch.as_tensor(rows, device=device)) for n, rows in edges.targets]
    return Edges(tuple(targets))


def _own_frame(
    arrays: dict[str, Tensor],
    wanted: list[Statistic],
    spans: list[tuple[int, slice, slice]],
) -> dict[str, Tensor]:
    """Each text's first token at index 0: left padding rolled to the end."""
    if all(q.start == 0 and k.start == 0 for _, q, k in spans):
        return arrays
    framed = {}
    for array in (array for statistic in wanted for array in statistic.arrays):
        values = arrays[array.name].clone()
        for sample, queries, keys in spans:
            shifts = {"query": queries.start, "key": keys.start}
            for axis, dim in enumerate(array.dims[1:]):
                if dim in shifts:
                    values[sample] = values[sample].roll(-shifts[dim], axis)
            if array.integer:
                own = values[sample]
                values[sample] = torch.where(own >= 0, own - keys.start, own)
        framed[array.name] = values
    return framed


def _stacked(parts: list[Tensor], array: Array) -> Tensor:
    """Several texts' arrays as one, padded at the end."""
    size = max(part.shape[0] if part.dim() else 0 for part in parts)
    if size == 0:
        return torch.stack(parts)
    empty = -1 if array.integer else torch.nan
    rows = [
        torch.nn.functional.pad(part, (0, size - part.shape[0]), value=empty)
        for part in parts
    ]
    return torch.stack(rows)


def _padded(values: Tensor, most: dict[str, int], array: Array) -> Tensor:
    """Room for the heads of the layer that has the most, and what else varies so."""
    empty = -1 if array.integer else torch.nan
    for axis, dim in enumerate(array.dims[1:], start=1):
        missing = most.get(dim, 0) - values.shape[axis]
        if missing > 0:
            sides = [0, 0] * (values.dim() - 1 - axis) + [0, missing]
            values = torch.nn.functional.pad(values, sides, value=empty)
    return values


def _strings(values: Any) -> np.ndarray:
    return np.array(values, dtype=object)
