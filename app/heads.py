"""Heads to ablate: by name, from a file, or the strongest by a detector."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xarray as xr

from interp.app.progress import Progress
from interp.capture import union
from interp.errors import InputError
from interp.heads import HeadGrid, HeadId, HeadSet
from interp.models import Model
from interp.probes.detector import HEADS, REPEATED_RANDOM, TEXT, Detector
from interp.probes.experiment import Experiment
from interp.probes.reading import Bootstrap, read, summarize
from interp.probes.registry import resolve
from interp.probes.text_experiment import TextExperiment
from interp.tasks import Task
from interp.tasks.reading import read_text
from interp.tasks.repeated import repeated_random_for
from interp.tracing import trace

Measured = Detector | Experiment
"""What measures heads."""

SEEDS = 3
"""Blocks of repeated random tokens that a detector reads, as in an atlas."""


@dataclass(frozen=True)
class Named:
    """Heads that are named."""

    names: tuple[str, ...]
    source: str = "the command"

    def choose(self, model: Model, *_: object) -> tuple[HeadSet, None]:
        """Those heads, where the model has them."""
        grid = _grid(model)
        return HeadSet.of(map(HeadId.parse, self.names), grid), None

    @property
    def spec(self) -> str:
        """What decides them."""
        return ",".join(self.names)

    def __str__(self) -> str:
        """How they were chosen."""
        return f"named in {self.source}"


@dataclass(frozen=True)
class Strongest:
    """The heads with the highest values of a detector."""

    detector: Measured
    k: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Strongest":
        """Read `induction:5%` or `induction:14`.

        Raises:
            InputError: No such detector of heads, or neither share nor number.
        """
        name, _, size = text.partition(":")
        [detector] = resolve(name.strip())
        over_tokens = isinstance(detector, Detector) and detector.dims != HEADS
        if over_tokens or isinstance(detector, TextExperiment):
            raise InputError(
                f"Heads were to be chosen by {detector.name}, which is not about "
                "heads. Choose a detector of heads, such as induction."
            )
        size = size.strip()
        try:
            if size.endswith("%"):
                share = float(size.removesuffix("%")) / 100
                if not 0 < share <= 1:
                    raise ValueError
                chosen = cls(detector, share=share)
            else:
                chosen = cls(detector, k=int(size))
        except ValueError as error:
            raise InputError(
                f"The strongest heads were asked for as {text!r}; that is no share and "
                f"no number of heads. Write {detector.name}:5% or {detector.name}:14."
            ) from error
        return chosen

    def choose(
        self,
        model: Model,
        texts: Mapping[str, str],
        max_tokens: int | None,
        seed: int,
        progress: Progress,
    ) -> tuple[HeadSet, xr.DataArray]:
        """Those heads, and the value of every head, as an atlas measures it."""
        values = strengths(model, self.detector, texts, max_tokens, seed, progress)
        return HeadSet.top(values, self.k, self.share), values

    @property
    def spec(self) -> str:
        """What decides them."""
        size = self.k if self.share is None else f"{100 * self.share:g}%"
        return f"{self.detector.name}:{size}"

    def __str__(self) -> str:
        """How they were chosen."""
        many = f"{self.k}" if self.share is None else f"{100 * self.share:g} % of"
        heads = "head" if self.k == 1 else "heads"
        return f"the {many} {heads} with the highest {self.detector.name}"


Choice = Named | Strongest


def read_heads(names: list[str] | None, file: Path | None, top: str | None) -> Choice:
    """How heads are chosen; exactly one way has to be given.

    Raises:
        InputError: None or several ways, or one that cannot be read.
    """
    if sum(way is not None for way in (names, file, top)) != 1:
        raise InputError(
            "An ablation needs heads, chosen in one way; "
            f"{'none' if not (names or file or top) else 'several'} was given. Give "
            "--heads L1.H2,L3.H4, or --heads-file FILE, or --top induction:5%."
        )
    if top is not None:
        return Strongest.parse(top)
    if file is not None:
        return Named(_names_in(file), file.name)
    if not names:
        raise InputError(
            "An ablation needs heads; the list is empty. Name at least one, as L12.H7."
        )
    for name in names:
        HeadId.parse(name)
    return Named(tuple(names))


def strengths(
    model: Model,
    detector: Measured,
    texts: Mapping[str, str],
    max_tokens: int | None,
    seed: int,
    progress: Progress,
) -> xr.DataArray:
    """A detector's mean over texts, or over blocks of random tokens, of every head.

    Of a text that is longer than the model's context, the beginning is read. An
    experiment has inputs of its own.

    Raises:
        InputError: It has no value on this model, or the same for all heads.
    """
    quick = Bootstrap(seed=seed, resamples=1)
    if isinstance(detector, Experiment):
        found = detector.run(model, bootstrap=quick, progress=progress)
        return _telling(model, detector, found[detector.name])
    if detector.task == REPEATED_RANDOM:
        drawn = [
            repeated_random_for(model, seed=each, max_tokens=max_tokens)
            for each in range(seed, seed + SEEDS)
        ]
        jobs = [
            (f"{REPEATED_RANDOM}_{task.seed}", task.ids, task.attrs, task.capture)
            for task in drawn
        ]
    else:
        own = detector.needs
        jobs = [(name, text, {"task": TEXT}, own) for name, text in texts.items()]
        max_tokens = min(filter(None, (max_tokens, model.max_tokens)), default=None)
    readings = []
    for name, inputs, attrs, needs in jobs:
        traced = trace(
            model,
            inputs,
            capture=union([needs, detector.needs]),
            max_tokens=max_tokens,
            name=name,
            attrs=attrs,
            progress=partial(progress, f"{detector.name} on {name}"),
        )
        readings.append(read(name, traced, [detector]))
    names = [reading.name for reading in readings]
    values = summarize(detector, readings, names, quick).get(detector.name)
    why = "; ".join(dict.fromkeys(w for r in readings for w in r.skipped.values()))
    return _telling(model, detector, values, why)


def _telling(
    model: Model, detector: Measured, values: xr.DataArray | None, why: str = ""
) -> xr.DataArray:
    """The values, if they tell one head from another."""
    if values is None or not values.max() > values.min():
        raise InputError(
            f"Heads of {model.name} were to be chosen by {detector.name}, which tells "
            f"none from another: {why or 'all have the same value'}. Choose another "
            "detector."
        )
    return values


def hidden_in(
    values: xr.DataArray | None, tasks: Mapping[str, Task]
) -> dict[str, list[str]]:
    """The haystacks that heads were chosen in, and the tasks that read them again.

    Args:
        values: What the choice was made by; empty lists if it read no haystack.
        tasks: What the heads are tested on.

    Returns:
        `haystacks`, as the tasks' attributes hold them, and `read_again_by`, names of
        tasks whose effects therefore say nothing of other texts.
    """
    knobs = json.loads(values.attrs.get("tasks", "[]")) if values is not None else []
    read = sorted({str(each["haystack"]) for each in knobs})
    again = [n for n, task in tasks.items() if task.attrs.get("haystack") in read]
    return {"haystacks": read, "read_again_by": again}


def said_of(hidden: Mapping[str, list[str]]) -> str:
    """What `hidden_in` found, behind how the heads were chosen."""
    if not hidden["haystacks"]:
        return ""
    if again := hidden["read_again_by"]:
        return f", in a text that {' and '.join(again)} reads too"
    return ", in other haystacks than the tasks read"


def _grid(model: Model) -> HeadGrid:
    return HeadGrid.of(model.anatomy)


def _names_in(file: Path) -> tuple[str, ...]:
    """Heads of a file: one name a line, or a CSV with columns layer and head."""
    lines = read_text(file).splitlines()
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    rows = [(number, line) for number, line in rows if line and line[0] != "#"]
    columns = [cell.strip().lower() for cell in rows[0][1].split(",")] if rows else []
    is_table = {"layer", "head"} <= set(columns)
    names = []
    for number, line in rows[is_table:]:
        try:
            if is_table:
                cells = dict(zip(columns, next(csv.reader([line])), strict=False))
                names.append(str(HeadId(int(cells["layer"]), int(cells["head"]))))
            else:
                names.append(str(HeadId.parse(line)))
        except (InputError, KeyError, ValueError) as error:
            raise InputError(
                f"Heads were to be read from {file}; line {number} is {line[:40]!r}. "
                "Write one head a line, such as L12.H7, or a CSV with the columns "
                "layer and head."
            ) from error
    if not names:
        raise InputError(
            f"Heads were to be read from {file}; it names none. Write one head a line, "
            "such as L12.H7."
        )
    return tuple(names)
