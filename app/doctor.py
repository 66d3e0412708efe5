"""`interp doctor`: what a person checks before trusting a number."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from interp.app.progress import Progress
from interp.audio import Sound, windows
from interp.doctor import examine
from interp.models import Model, load


def diagnose(
    ref: str,
    texts: Mapping[str, str],
    max_tokens: int,
    device: str,
    dtype: str | None,
    progress: Progress,
) -> tuple[list[Table | str], bool]:
    """What there is to print, and whether all doors agree.

    Raises:
        InputError: The model or the text cannot be read.
        UnsupportedModelError: The model has no attention.
    """
    model = load(
        ref, device=device, dtype=dtype, progress=lambda step: progress(step, 0, 0)
    )
    [(name, text), *_] = texts.items()
    found = examine(
        model,
        _readable(model, text),
        max_tokens=None if model.extractor is not None else max_tokens,
        progress=lambda door: progress(door, 0, 0),
    )
    what = "noise" if model.extractor is not None else name
    said = (
        f"{model.name}, {found.n_tokens} tokens of {what}; errors are of {found.truth}."
    )
    return [
        _table("What can be done", found.capabilities),
        _table("Attention", _alike(found.layers)),
        _table("Doors", _written(found.doors)),
        said,
    ], found.agrees


def _readable(model: Model, text: str) -> object:
    """The text; for a model of sound half a second of noise."""
    if model.extractor is None:
        return text
    noise = np.random.default_rng(0).normal(scale=0.1, size=8_000)
    [window] = windows(model, Sound(noise.astype(np.float32), 16_000, "noise"))
    return window.inputs


def _alike(layers: pd.DataFrame) -> pd.DataFrame:
    """Layers that are alike in one row."""
    same = [c for c in layers if c not in ("layer", "module")]
    groups = layers.groupby(same, sort=False, dropna=False)
    rows = []
    for _, group in groups:
        alike = _ranges([int(layer) for layer in group["layer"]])
        rows.append({"layers": alike, **group[same].iloc[0].to_dict()})
    return pd.DataFrame(rows)


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _written(doors: pd.DataFrame) -> pd.DataFrame:
    frame = doors.copy()
    said = np.where(frame["agrees"], "yes", "no")
    frame["agrees"] = np.where(frame["works"], said, "")
    frame["works"] = np.where(frame["works"], "yes", "no")
    return frame.rename(columns={"cpu_s": "CPU s", "peak_mib": "extra MiB"})


def _table(title: str, frame: pd.DataFrame) -> Table:
    view = Table(*map(str, frame.columns), title=title, title_justify="left")
    for row in frame.itertuples(index=False):
        view.add_row(*(_cell(value) for value in row))
    return view


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.3g}"
    return escape(str(value)[:160])
