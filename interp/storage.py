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
LABELS = "labels_digest"
NODES = "nodes"
COMPLETE = "complete"

BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError)
"""What reading data that are missing or cut off raises, from the file to the codec."""


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


Coordinates = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclass
class Memory:
    """A trace that grows in memory."""

    nodes: dict[str, xr.Dataset] = field(default_factory=dict)
    missing: dict[tuple[str, int], dict[str, Field]] = field(default_factory=dict)

    def done(self, node: str, layer: int) -> bool:
        """Nothing is there before it is written."""
        return False

    def create(self, node: str, fields: dict[str, Field], coords: Coordinates) -> None:
        """Makes room for a node; memory is touched where a layer is written."""
        arrays = {
            name: (f.dims, np.empty(f.shape, f.dtype), f.attrs)
            for name, f in fields.items()
        }
        self.nodes[node] = xr.Dataset(arrays, coords)
        layers = max(dict(f.sizes)["layer"] for f in fields.values())
        self.missing |= {(node, layer): fields for layer in range(layers)}

    def write(self, node: str, layer: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps one layer."""
        for name, values in arrays.items():
            target = self.nodes[node][name]
            target.values[_layer(target.dims, layer)] = values
        self.missing.pop((node, layer), None)

    def finish(self, attrs: dict[str, Any]) -> xr.DataTree:
        """The trace."""
        for (node, layer), fields in self.missing.items():
            for name, f in fields.items():
                self.nodes[node][name].values[_layer(f.dims, layer)] = f.empty
        self.missing.clear()
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
        with _writing(path):
            if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
                _require_store(path)
                if resume:
                    _require_same(path, attrs)
                else:
                    shutil.rmtree(path)
            if not (path / "zarr.json").exists():
                header = {MARK: FORMAT, **attrs}
                zarr.create_group(path, attributes=header, zarr_format=3)
            self.root: Any = zarr.open_group(path, mode="r+")
            self.digests = self._found()
            self.is_complete = self._is_intact()
            if self.root.attrs.get(COMPLETE) and not self.is_complete:
                self.root.attrs[COMPLETE] = False

    def _found(self) -> dict[str, dict[str, str]]:
        """Digests of the nodes there are; what is damaged beyond a layer goes."""
        found = {}
        for folder in sorted(each for each in self.path.iterdir() if each.is_dir()):
            digests = _digests(self.path, folder.name)
            if digests is None:
                shutil.rmtree(folder)
            else:
                found[folder.name] = digests
        return found

    def _is_intact(self) -> bool:
        """Everything that a finished run wrote is there."""
        return bool(self.root.attrs.get(COMPLETE)) and all(
            name in self.digests
            and all(self.done(name, int(layer)) for layer in self.digests[name])
            for name in self.root.attrs[NODES]
        )

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
            group = self.root[node]  # as it now is on the disk
            group.attrs.update({LABELS: _digest(_labels_of(group)), DIGESTS: {}})
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
            nodes = sorted(self.digests)
            self.root.attrs.update({**attrs, NODES: nodes, COMPLETE: True})
        return open_trace(self.path, verify=False)


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
    attrs = {key: value for key, value in root.attrs.items() if key != MARK}
    folders = sorted(each.name for each in path.iterdir() if each.is_dir())
    attrs[COMPLETE] = bool(attrs.get(COMPLETE, False))
    nodes = attrs.pop(NODES, folders)
    tree = {"/": xr.Dataset(attrs=attrs)}
    for name in nodes:
        digests = _digests(path, name)
        if digests is None and not attrs[COMPLETE]:
            continue  # its run ended while making room for it
        damaged = _damage(root, name, digests) if verify or digests is None else None
        if damaged:
            raise StorageError(
                f"The store {path} is damaged: {damaged} is not what was written. "
                "Trace again with resume to repair it."
            )
        tree[f"/{name}"] = _dataset(path, name)
    return xr.DataTree.from_dict(tree)


def _digests(path: Path, name: str) -> dict[str, str] | None:
    """Digests of a node's layers; None for a node that was never whole, or no more."""
    try:
        group: Any = zarr.open_group(path / name, mode="r")
        if _digest(_labels_of(group)) == group.attrs[LABELS]:
            return dict(group.attrs[DIGESTS])
    except BROKEN:
        pass
    return None


def _damage(root: Any, name: str, digests: dict[str, str] | None) -> str | None:
    """What of a node is not as it was written."""
    if digests is None:
        return f"'{name}'"
    for layer, digest in digests.items():
        if _digest(_layer_of(root[name], int(layer))) != digest:
            return f"layer {layer} of '{name}'"
    return None


def _dataset(path: Path, name: str) -> xr.Dataset:
    """A node with the labels that it had in memory."""
    ds = xr.open_dataset(path, engine="zarr", group=name, consolidated=False)
    strings = {
        label: (array.dims, array.values.astype(object), array.attrs)
        for label, array in ds.coords.items()
        if array.dtype.kind == "T"
    }
    ds = ds.assign_coords(strings)
    return ds.drop_attrs(deep=False)


def _layer(dims: Iterable[Hashable], index: int) -> tuple[slice | int, ...]:
    """Where one layer of an array lies."""
    return tuple(index if dim == "layer" else slice(None) for dim in dims)


def _has_layers(name: str, array: Any) -> bool:
    """Values of layers, not labels along them."""
    dims = array.metadata.dimension_names or ()
    return ("layer" in dims and len(dims) > 1) or name == "median_all"


def _layer_of(group: Any, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    """The layer's part of every array that has layers, by name."""
    for name, array in sorted(group.arrays()):
        if _has_layers(name, array):
            try:
                at = _layer(array.metadata.dimension_names, layer)
                yield name, np.asarray(array[at])
            except BROKEN:
                yield name, np.empty(0)


def _labels_of(group: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Names of the arrays that have layers, and the labels themselves."""
    for name, array in sorted(group.arrays()):
        values = np.empty(0) if _has_layers(name, array) else np.asarray(array[...])
        yield name, values.astype(object) if values.dtype.kind == "T" else values


def _digest(arrays: Iterator[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, values in arrays:
        digest.update(name.encode())
        if values.dtype == object:
            digest.update(json.dumps(values.tolist()).encode())
        else:
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
