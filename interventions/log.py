"""The file that a sweep grows in: a line for each run, whole or not there."""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from interp.errors import StorageError

FORMAT = 1
"""Version of the layout; a file of another one is refused."""

Scores = dict[str, float]


class Log:
    """Results by item and intervention, in memory and, if asked, in a file.

    Each line is written and forced to the disk at once. What a kill leaves of a last
    line is dropped; any other damage is refused.

    Args:
        path: Of the file, made if missing; None keeps results in memory.
        identity: What the results depend on; a file of another identity is refused.
        resume: Go on with what is there; False starts anew.

    Raises:
        StorageError: The file is another sweep's, is damaged, or cannot be written.
    """

    def __init__(
        self, path: Path | None, identity: dict[str, Any], resume: bool = True
    ) -> None:
        self.path = path
        self.results: dict[tuple[str, str], Scores] = {}
        self.file: TextIO | None = None
        if path is None:
            return
        try:
            kept = self._read(path, identity) if resume and path.exists() else 0
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("r+" if kept else "w", encoding="utf-8")
            self.file.seek(kept)
            self.file.truncate()
            if not kept:
                self._write({"interp_sweep": FORMAT, **identity})
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, item: str, results: dict[str, Scores]) -> None:
        """Keeps the scores of some interventions on an item, by intervention."""
        self.results |= {(item, name): scores for name, scores in results.items()}
        try:
            self._write({"item": item, "results": results})
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())

    def _read(self, path: Path, identity: dict[str, Any]) -> int:
        """Reads the results; bytes of the file that are whole lines."""
        kept = 0
        data = path.read_bytes()
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                self._take(json.loads(line), number)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StorageError(
                    f"{path} is no sweep, or line {number} of it is damaged. Delete "
                    "the file, or choose another one."
                ) from error
            if number == 1:
                self._compare(json.loads(line), identity)
            kept += len(line)
        return kept

    def _take(self, line: Any, number: int) -> None:
        if number == 1 and line["interp_sweep"] != FORMAT:
            raise ValueError
        if number > 1:
            found = line["results"].items()
            self.results |= {(line["item"], name): dict(s) for name, s in found}

    def _compare(self, header: dict[str, Any], identity: dict[str, Any]) -> None:
        changed = [key for key in identity if header.get(key) != identity[key]]
        if changed:
            raise StorageError(
                f"{self.path} holds another sweep: its {changed[0]} differs from this "
                "one's. Choose another path, or start anew with resume=False."
            )

    def _unwritable(self, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(
            f"{self.path} cannot be written: {reason}. What was finished is kept; make "
            "room or choose another path, then run again."
        )
