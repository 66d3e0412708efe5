"""Where a trace grows: in memory, or in a Zarr store that survives interruption.

A store holds one group a node and one chunk a layer of each array. A layer counts as
done once its digest is written, after its data; opening checks every digest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
import zarr.errors

from interp.errors import StorageError

FORMAT = 1
"""Version of the layout; a store of another one is refused."""

MARK = "interp_format"
DIGESTS = "layer_digests"
COMPLETE = "complete"


@dataclass(frozen=True)
class Field:
    """How one array of a node is stored.

    Attributes:
        dims: Names of its axes; `layer` is among them.
        shape: Sizes of the axes.
        dtype: Type of its values.
        attrs: Units and the rest.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: dict[str, Any]

    @property
    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each axis and its size."""
        return zip(self.dims, self.shape, strict=True)

    @property
    def empty(self) -> float | int:
        """What stands where nothing was computed."""
        return -1 if np.issubdtype(self.dtype, np.integer) else np.nan

    def layer(self, index: int) -> tuple[slice | int, ...]:
        """Where one layer lies."""
        return tuple(index if dim == "layer" else slice(None) for dim in self.dims)


Coordinates = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclass
class Memory:
    """A trace that grows in memory."""

    nodes: dict[str, xr.Dataset] = field(default_factory=dict)

    def done(self, node: str, layer: int) -> bool:
        """Nothing is there before it is written."""
        return False

    def create(self, node: str, fields: dict[str, Field], coords: Coordinates) -> None:
        """Makes room for a node."""
        arrays = {
            name: (f.dims, np.full(f.shape, f.empty, f.dtype), f.attrs)
            for name, f in fields.items()
        }
        self.nodes[node] = xr.Dataset(arrays, coords)

    def write(self, node: str, layer: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps one layer."""
        for name, values in arrays.items():
            target = self.nodes[node][name]
            target.values[_layer(target.dims, layer)] = values

    def finish(self, attrs: dict[str, Any]) -> xr.DataTree:
        """The trace."""
        tree = {f"/{name}": node for name, node in self.nodes.items()}
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **tree})


class Store:
    """A trace that grows in a Zarr store.

    Args:
        path: A folder, made if missing.
        attrs: Provenance; a store of another provenance is refused.
        resume: Go on with what an earlier run left; False starts anew.

    Raises:
        StorageError: The folder holds something else, another run's results, or
            cannot be written.
    """

    def __init__(self, path: Path, attrs: dict[str, Any], resume: bool = True) -> None:
        self.path = path
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            _require_store(path)
            if resume:
                _require_same(path, attrs)
            else:
                shutil.rmtree(path)
        with _writing(path):
            self.root: Any = zarr.open_group(path, mode="a", zarr_format=3)
            self.root.attrs.update({MARK: FORMAT, **attrs})
        self.digests = {
            name: dict(group.attrs.get(DIGESTS, {}))
            for name, group in self.root.groups()
        }

    @property
    def is_complete(self) -> bool:
        """Every layer that was asked for is there."""
        return bool(self.root.attrs.get(COMPLETE))

    def done(self, node: str, layer: int) -> bool:
        """The layer is written and its data unharmed."""
        digest = self.digests.get(node, {}).get(str(layer))
        if digest is None:
            return False
        return _digest(_layer_of(self.root[node], layer)) == digest

    def create(self, node: str, fields: dict[str, Field], coords: Coordinates) -> None:
        """Makes room for a node, unless an earlier run did."""
        if node in self.digests:
            return
        with _writing(self.path):
            group = self.root.require_group(node)
            for name, f in fields.items():
                place = f.dims.index("layer")
                chunks = tuple(
                    1 if axis == place else max(size, 1)
                    for axis, size in enumerate(f.shape)
                )
                array = group.create_array(
                    name,
                    shape=f.shape,
                    dtype=f.dtype,
                    chunks=chunks,
                    fill_value=f.empty,
                    dimension_names=f.dims,
                    overwrite=True,
                )
                array.attrs.update(f.attrs)
            ds = xr.Dataset(coords=coords)
            ds.to_zarr(self.path, group=node, mode="a", consolidated=False)
        self.digests[node] = {}

    def write(self, node: str, layer: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes one layer, then its digest."""
        with _writing(self.path):
            group = self.root[node]
            for name, values in arrays.items():
                array = group[name]
                array[_layer(array.metadata.dimension_names, layer)] = values
            self.digests[node][str(layer)] = _digest(_layer_of(group, layer))
            ordered = sorted(self.digests[node].items(), key=lambda item: int(item[0]))
            group.attrs[DIGESTS] = dict(ordered)

    def finish(self, attrs: dict[str, Any]) -> xr.DataTree:
        """Marks the store complete and opens it."""
        with _writing(self.path):
            self.root.attrs.update({**attrs, COMPLETE: True})
        return open_trace(self.path)


def open_trace(path: str | os.PathLike[str], *, verify: bool = True) -> xr.DataTree:
    """A stored trace; arrays are read when they are used.

    Args:
        path: Of the store.
        verify: Check the digest of every layer, which reads all data once.

    Raises:
        StorageError: There is no store, it is of another format, or data are missing
            or altered.
    """
    path = Path(path)
    _require_store(path)
    root: Any = zarr.open_group(path, mode="r")
    if verify:
        for node, group in root.groups():
            for layer, digest in dict(group.attrs.get(DIGESTS, {})).items():
                if _digest(_layer_of(group, int(layer))) != digest:
                    raise StorageError(
                        f"The store {path} is damaged: layer {layer} of '{node}' is "
                        "not what was written. Trace again with resume to repair it."
                    )
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    tree.attrs.pop(MARK, None)
    tree.attrs[COMPLETE] = bool(tree.attrs.get(COMPLETE, False))
    for node in tree.subtree:
        node.attrs.pop(DIGESTS, None)
    return tree


def _layer(dims: Iterable[Hashable], index: int) -> tuple[slice | int, ...]:
    return tuple(index if dim == "layer" else slice(None) for dim in dims)


def _layer_of(group: Any, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    """The layer's part of every array that has layers, by name."""
    for name, array in sorted(group.arrays()):
        dims = array.metadata.dimension_names or ()
        if ("layer" in dims and len(dims) > 1) or name == "median_all":
            try:
                yield name, np.asarray(array[_layer(dims, layer)])
            except (OSError, ValueError, RuntimeError, IndexError):
                yield name, np.empty(0)


def _digest(arrays: Iterator[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, values in arrays:
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _require_store(path: Path) -> None:
    """Refuses what is no store of ours."""
    if not path.exists():
        raise StorageError(f"There is no store at {path}. Check the path.")
    header = path / "zarr.json"
    if not path.is_dir() or not header.is_file():
        raise StorageError(
            f"{path} is not a trace store: it has no zarr.json. Choose another path."
        )
    try:
        found = json.loads(header.read_text())["attributes"][MARK]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} was not written by interp, or its header is cut off. Choose "
            "another path, or delete it and trace again."
        ) from error
    if found != FORMAT:
        raise StorageError(
            f"{path} has format {found}; this version reads {FORMAT}. Trace again."
        )


def _require_same(path: Path, attrs: dict[str, Any]) -> None:
    """Refuses the store of another run."""
    known = json.loads((path / "zarr.json").read_text())["attributes"]
    changed = [key for key in attrs if known.get(key) != attrs[key]]
    if changed:
        key = changed[0]
        raise StorageError(
            f"{path} holds another run's results: its {key} is {known.get(key)!r}, "
            f"this run's is {attrs[key]!r}. Choose another path, or resume=False."
        )


class _writing:
    """Turns a failed write into one clear error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise StorageError(
                f"{self.path} cannot be written: {reason}. What was finished is kept; "
                "make room or choose another path, then run again."
            ) from error
