"""Stores that may be opened: those that the command line named, and uploaded ones."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xarray as xr

from interp.errors import StorageError
from interp.storage import open_trace

ATLAS, TRACES = "atlas.zarr", "traces"
UPLOAD_MB = 64
"""Largest upload, in MiB."""
UNPACKED = 16
"""How many times larger its content may be."""

CODECS = {
    *("bytes", "blosc", "crc32c", "gzip", "zstd", "transpose"),
    *("vlen-utf8", "sharding_indexed"),
}
"""Codecs of data that can do nothing when they are read; pickle is none of them."""


@dataclass(frozen=True)
class Opened:
    """What a store holds.

    Attributes:
        atlas: An atlas, or None.
        traces: Traces by the node of their text.
    """

    atlas: xr.DataTree | None
    traces: dict[str, Path]


def open_store(path: Path) -> Opened:
    """An atlas folder, its `atlas.zarr`, or the store of a trace.

    Raises:
        StorageError: It is gone, is neither, or is damaged.
    """
    if not path.is_dir():
        raise StorageError(
            f"{path} is not there (any more). Put it back, or start the explorer with "
            "another store."
        )
    inside = path / ATLAS
    if not inside.is_dir() and path.name == ATLAS:
        path, inside = path.parent, path
    if inside.is_dir():
        require_plain(inside)
        folder = path / TRACES
        found = sorted(folder.glob("text_*.zarr")) if folder.is_dir() else []
        return Opened(_read(inside), {each.stem: each for each in found})
    require_plain(path)
    open_trace(path, verify=False)
    return Opened(None, {"text_0": path})


def read_trace(path: Path) -> xr.DataTree:
    """A stored trace, checked.

    Raises:
        StorageError: It is gone or damaged.
    """
    require_plain(path)
    return open_trace(path)


def identity(path: Path) -> str:
    """What changes when a store is written anew; empty when it is gone."""
    heads = [path / "zarr.json", path / ATLAS / "zarr.json", path / "run.json"]
    return ",".join(str(h.stat().st_mtime_ns) for h in heads if h.exists())


def unpack(upload: IO[bytes], folder: Path) -> Path:
    """A zipped store, unpacked into a new folder.

    Raises:
        StorageError: It is no zip file of a store, leaves its folder, or is too large.
    """
    try:
        with zipfile.ZipFile(upload) as archive:
            entries = archive.infolist()
            size = sum(each.file_size for each in entries)
            if size > UPLOAD_MB * UNPACKED << 20:
                raise StorageError(
                    f"The upload unpacks to {size >> 20:,} MiB; at most "
                    f"{UPLOAD_MB * UNPACKED:,} are taken. Name the store on the "
                    "command line instead."
                )
            root = folder.resolve()
            for each in entries:
                if not (root / each.filename).resolve().is_relative_to(root):
                    raise StorageError(
                        "The upload holds a path that leaves its folder. Zip the "
                        "store's own folder."
                    )
            archive.extractall(root)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageError(
            "The upload is no zip file that can be read. Zip the folder of a store, "
            "such as atlas.zarr."
        ) from error
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return next(_stores_in(root), root)


def require_plain(path: Path) -> None:
    """Refuse a store whose reading could run code, before anything of it is read.

    Raises:
        StorageError: It uses a codec that is not known to be plain data.
    """
    if any(path.rglob(".zarray")) or any(path.rglob(".zgroup")):
        raise StorageError(
            f"{path.name} is a store of Zarr version 2, which interp does not write. "
            "Trace again."
        )
    for header in path.rglob("zarr.json"):
        try:
            named = set(_codecs(json.loads(header.read_text("utf-8"))))
        except (ValueError, OSError) as error:
            raise StorageError(
                f"{path.name} is damaged: {header.relative_to(path)} cannot be read. "
                "Trace again."
            ) from error
        if named - CODECS:
            raise StorageError(
                f"{path.name} uses the codec {min(named - CODECS)!r}, which interp "
                "does not write and which may run code. It is not opened."
            )


def _codecs(value: Any, within: bool = False) -> Iterator[str]:
    """Names of all codecs of a header, at any depth."""
    if isinstance(value, dict):
        if within and "name" in value:
            yield str(value["name"])
        for key, each in value.items():
            yield from _codecs(each, within or key in ("codecs", "index_codecs"))
    elif isinstance(value, list):
        for each in value:
            yield from ([each] if within and isinstance(each, str) else [])
            yield from _codecs(each, within)


def _stores_in(root: Path) -> Iterator[Path]:
    """Stores of an unpacked upload: an atlas first."""
    yield from (each.parent for each in sorted(root.rglob(ATLAS)))
    yield from (each.parent for each in sorted(root.rglob("zarr.json")))


def _read(path: Path) -> xr.DataTree:
    try:
        tree = xr.open_datatree(path, engine="zarr", consolidated=False)
        tree = tree.load()
        if "heads" not in tree.children:
            raise KeyError("heads")
    except Exception as error:  # xarray and zarr raise whatever damaged data makes
        raise StorageError(
            f"{path} is no atlas that can be read: it is damaged, or another program "
            "wrote it. Make the atlas again."
        ) from error
    return tree
