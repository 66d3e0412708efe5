"""`interp ablate`: a folder that tells what a model lost with some heads."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import xarray as xr

from interp.app.controls import Controls
from interp.app.folder import (
    PAGE,
    digest,
    identity,
    known_run,
    require_same,
    save,
    versions,
    write_run,
    write_whole,
    writing,
)
from interp.app.heads import Choice, hidden_in, said_of
from interp.app.plan import Plan
from interp.app.progress import Progress
from interp.app.results import ablation_tree, to_table
from interp.app.tasks import Spec, read_tasks
from interp.errors import InputError
from interp.evaluation import check
from interp.interventions.ablation import Mode
from interp.interventions.sweeping import sweep
from interp.models import Model, load
from interp.tasks import Item, Task
from interp.tasks.prompts import encode
from interp.viz.ablation import write

STORE = "effects.zarr"
TABLE = "ablation.csv"
SWEEPS = "sweeps"


@dataclass(frozen=True)
class Request:
    """What was asked for, before anything was measured."""

    model: str | Model
    heads: Choice
    out: Path
    texts: dict[str, str]
    tasks: tuple[Spec, ...] = ("nll",)
    modes: tuple[Mode, ...] = ("zero",)
    groups: bool = False
    n_controls: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    command: str = ""
    folder: Path = Path()
    """Where relative paths of tasks begin."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the results beside model and texts."""
        return {
            "heads": self.heads.spec,
            "groups": self.groups,
            "modes": list(self.modes),
            "tasks": [s if isinstance(s, str) else json.dumps(s) for s in self.tasks],
            "controls": self.n_controls,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }


def make(request: Request, progress: Progress) -> tuple[Path, bool]:
    """Ablate, or finish an ablation that was interrupted.

    Returns:
        The page, and whether it was there already.

    Raises:
        InputError: Heads, tasks, texts or controls cannot be used, or the folder holds
            something else or another run's results.
        UnsupportedModelError: No decoder-only language model.
        StorageError: The folder cannot be written.
    """
    out, clock = request.out, [time.perf_counter()]
    known = known_run(out)
    tasks = read_tasks(request.tasks, request.texts, request.folder)
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    clock.append(time.perf_counter())
    decided = identity(model, request.texts, request.parameters)
    decided["inputs"] |= {
        f"task {name}": digest(json.dumps(task.attrs)) for name, task in tasks.items()
    }
    if known is not None:
        require_same(out, known, decided, "ablation")
        made = all((out / name).exists() for name in (STORE, TABLE, PAGE))
        if known.get("finished") and made:
            return out / PAGE, True
    texts = _cut(model, request.texts, request.max_tokens)
    tasks = read_tasks(request.tasks, texts, request.folder)
    items = {name: _items(model, task) for name, task in tasks.items()}
    heads, values = request.heads.choose(
        model, request.texts, request.max_tokens, request.seed, progress
    )
    heads = heads.as_kv_groups() if request.groups else heads
    controls = Controls.of(
        heads, request.n_controls, request.seed, groups=request.groups
    )
    clock.append(time.perf_counter())
    plan = Plan(model, heads, controls, request.modes, request.seed)
    with writing(out):
        write_run(out, {**decided, "finished": False})
        interventions = plan.interventions(texts, items)
        tables = {
            name: sweep(
                model,
                interventions,
                each,
                out=out / SWEEPS / _file_name(number, name),
                progress=partial(progress, name),
            )
            for number, (name, each) in enumerate(items.items())
        }
        clock.append(time.perf_counter())
        progress("writing", 0, 0)
        tree = ablation_tree(model, tasks, tables, plan.controls_of, seed=request.seed)
        tree["heads"] = xr.DataTree(plan.head_maps(values))
        tree.attrs |= _attrs(plan, request, decided)
        tree.attrs["chosen"] += said_of(hidden_in(values, tasks))
        save(tree, out / STORE)
        write_whole(out / TABLE, to_table(tree).to_csv(index=False))
        write(tree, out / PAGE)
        clock.append(time.perf_counter())
        steps = ("load_s", "choose_s", "sweep_s", "write_s")
        timings = {s: round(clock[n + 1] - clock[n], 2) for n, s in enumerate(steps)}
        finished = {
            **decided,
            "finished": True,
            "command": request.command,
            "heads": str(heads),
            "chosen_on": hidden_in(values, tasks),
            "versions": json.loads(tree.attrs["versions"]),
            "timings": timings,
            "skipped": json.loads(tree.attrs["skipped"]),
        }
        write_run(out, finished)
    return out / PAGE, False


def read_modes(names: Sequence[str]) -> tuple[Mode, ...]:
    """Ways of ablation by their names.

    Raises:
        InputError: There is none of that name, or one is named twice.
    """
    known = get_args(Mode)
    wrong = [n for n in names if n not in known or list(names).count(n) > 1]
    if wrong or not names:
        came = f"{wrong[0]!r}" if wrong else "none"
        raise InputError(
            f"Heads are ablated by {', '.join(known)}; got {came}. Name one or more of "
            "these, each once."
        )
    return tuple(cast(Mode, name) for name in names)


def _attrs(plan: Plan, request: Request, decided: dict[str, Any]) -> dict[str, Any]:
    """What was asked before, for the record."""
    model, grid = plan.model, plan.heads.grid
    skipped = [{"what": "controls", "why": note} for note in plan.controls.notes]
    return {
        "model": model.name,
        "model_hash": model.content_hash,
        "model_type": model.anatomy.model_type,
        "device": decided["device"],
        "dtype": decided["parameters"]["dtype"],
        "n_layers": grid.n_layers,
        "n_heads": grid.n_heads,
        "n_kv_heads": grid.n_kv_heads,
        "heads": str(plan.heads),
        "chosen": str(request.heads),
        "groups": int(request.groups),
        "modes": json.dumps(request.modes),
        "n_controls": len(plan.controls.drawn),
        "inputs": json.dumps(decided["inputs"]),
        "seed": request.seed,
        "versions": json.dumps(versions()),
        "skipped": json.dumps(skipped),
        "command": request.command,
    }


def _cut(
    model: Model, texts: Mapping[str, str], max_tokens: int | None
) -> dict[str, str]:
    """Texts of at most so many tokens."""
    if max_tokens is None:
        return dict(texts)
    cut = {}
    for name, text in texts.items():
        _, offsets = encode(model, text)
        cut[name] = text[: max(end for _, end in offsets[:max_tokens])]
    return cut


def _items(model: Model, task: Task) -> list[Item]:
    """The items of a task; refuses what this model cannot be asked."""
    try:
        items = task.items(model)
        for item in items:
            check(model, item)
    except InputError as error:
        raise InputError(f"{task.name}: {error}") from error
    return items


def _file_name(number: int, task: str) -> str:
    """Of a task's sweep; a number keeps apart what differs in odd characters."""
    plain = re.sub(r"[^\w.-]+", "-", task)
    return f"{number}-{plain}.jsonl"
