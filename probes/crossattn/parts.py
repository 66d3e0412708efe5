"""Finished pieces of a long computation, kept so that an interrupted one goes on."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from interp.errors import StorageError

Arrays = dict[str, np.ndarray]


class Parts:
    """Arrays by name, in a folder or nowhere.

    Args:
        folder: Of this computation alone, made if missing; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a name, from its file or made and kept.

        Raises:
            StorageError: The file is damaged, or the folder cannot be written.
        """
        found = self.read(name)
        if found is None:
            found = make()
            self.write(name, found)
        return found

    def read(self, name: str) -> Arrays | None:
        """What is kept under a name; None if nothing is.

        Raises:
            StorageError: The file is damaged.
        """
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as kept:
                return dict(kept)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise StorageError(
                f"{path} cannot be read: {error}. Delete it; its piece is made again."
            ) from error

    def write(self, name: str, arrays: Arrays) -> None:
        """Keeps arrays under a name, whole or not at all.

        Raises:
            StorageError: The folder cannot be written.
        """
        path = self._path(name)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(part, path)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}. What was "
                "finished is kept; make room or choose another folder, then run again."
            ) from error

    def below(self, name: str) -> "Parts":
        """Pieces of a part of the computation."""
        return Parts(None if self.folder is None else self.folder / name)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.npz"
