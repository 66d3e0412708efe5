"""Runs that were finished: files, each named by all that its run depends on."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from interp.editing import in_force
from interp.errors import StorageError
from interp.models import Model


def remembered(
    folder: Path | None,
    model: Model,
    identity: Any,
    run: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """What a run gave, from its file if it was finished before.

    Under an intervention nothing is kept: what is in force has no name.

    Args:
        folder: Where files are kept, made if missing; None keeps nothing.
        model: What is run.
        identity: Whatever else decides the result, ready for JSON.
        run: Makes the result, ready for JSON.

    Raises:
        StorageError: The folder cannot be read or written, or a file is damaged.
    """
    if folder is None or in_force(model.module):
        return run()
    place = [model.device.type, str(model.dtype), torch.__version__]
    whole = json.dumps([model.content_hash, place, identity], sort_keys=True)
    path = folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.json"
    if path.exists():
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path} cannot be read: {error}. Delete it; its run is made again."
            ) from error
    result = run()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result), "utf-8")
        os.replace(part, path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}. What was finished "
            "is kept; make room or choose another folder, then run again."
        ) from error
    return result
