"""Many interventions on many items: shared work, resumable, in as many workers."""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from interp.anatomy import Anatomy
from interp.editing import in_force
from interp.errors import InputError
from interp.evaluation import attrs_of, check, coordinates
from interp.heads import HeadGrid, HeadSet
from interp.interventions.ablation import AblateHeads, Mode
from interp.interventions.intervention import Intervention
from interp.interventions.log import Log, Scores
from interp.interventions.prefix import LIMIT, Prefix, twin
from interp.kernels import workers
from interp.metrics import score
from interp.models import Model
from interp.tasks.items import Item

NONE = "none"
"""Name of the untouched model among the interventions."""

TOKENS, LOGITS = 16_384, 1 << 28
"""Tokens, and logits, of a batch on a GPU, over all its interventions."""

BASE = 1 << 29
"""Bytes of an item's logits up to which KL and agreement with them are measured."""

Progress = Callable[[int, int], None]
"""Called with the runs done and the runs in all."""


def sweep(
    model: Model,
    interventions: Mapping[str, Intervention],
    items: Sequence[Item],
    *,
    out: Path | str | None = None,
    resume: bool = True,
    kl: bool = True,
    share: bool = True,
    limit: int = LIMIT,
    n_workers: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Every item under every intervention, and untouched.

    A run begins at the first block that its intervention changes, with the residual
    stream of the untouched run. On a CPU each worker has a core of its own; on a GPU
    the heads of a layer run as one batch.

    Args:
        model: A decoder-only language model; it is left alone, copies of its modules
            (not of its weights) are changed.
        interventions: By name; `none` is taken.
        items: Of one task or several, each name once.
        out: File that grows by a line a run. A killed sweep goes on from there, and
            its table is the same to the last bit.
        resume: Go on with `out`; False starts anew.
        kl: Measure KL and agreement with the untouched logits, where those of an item
            take less than 512 MiB.
        share: Begin runs in the middle; False runs them from the first token on.
        limit: Bytes of the residual stream kept of an item; beyond, runs begin a few
            blocks earlier than they could.
        n_workers: On a CPU; torch's number of threads if None.
        progress: Called after each run.

    Returns:
        Variables over (intervention, item), as `interp.metrics.score` names them, and
        `choice` where items have wrong answers; labels of the items as coordinates.

    Raises:
        InputError: No item, a name twice, or the sweep of an edited model.
        UnsupportedModelError: No decoder-only language model, or one whose blocks take
            more from those before than the residual stream.
        StorageError: `out` holds another sweep, or is damaged.
    """
    plan = _Plan(model, dict(interventions), tuple(items), kl, share, limit)
    plan.check()
    log = Log(None if out is None else Path(out), plan.identity, resume)
    n_runs = len(items) * (1 + len(interventions))
    try:
        for item, results in _run(plan, log, n_workers):
            log.add(item.name, results)
            if progress is not None:
                progress(len(log.results), n_runs)
    finally:
        log.close()
    return plan.table(log)


def single_heads(
    anatomy: Anatomy,
    mode: Mode = "zero",
    reference: xr.DataArray | None = None,
    site: str = "self",
) -> dict[str, AblateHeads]:
    """An ablation for each head of a model alone, by the head's name."""
    grid = HeadGrid.of(anatomy, site)
    return {
        str(head): AblateHeads(HeadSet((head,), grid), mode, reference) for head in grid
    }


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is run, in which batches, and how it is scored."""

    model: Model
    interventions: dict[str, Intervention]
    items: tuple[Item, ...]
    kl: bool
    share: bool
    limit: int

    def check(self) -> None:
        """Refuses what cannot be swept, before anything is run."""
        model, names = self.model, [item.name for item in self.items]
        if not names or len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(
                "A sweep needs items, each with a name of its own; got "
                f"{f'{twice[0]!r} twice' if twice else 'none'}. Take them from a task."
            )
        if NONE in self.interventions:
            raise InputError(
                f"An intervention was called {NONE!r}, as the untouched model is. Give "
                "it another name."
            )
        if in_force(model.module):
            raise InputError(
                "A sweep was asked for inside another intervention, of which it would "
                "know nothing. Add the two, with +."
            )
        for item in self.items:
            for text in (item, *item.others):
                check(model, text)
        for intervention in self.interventions.values():
            intervention.check(model.anatomy)

    @property
    def identity(self) -> dict[str, Any]:
        """What the results depend on."""
        items = json.dumps([_content(item) for item in self.items])
        told = {name: str(each) for name, each in self.interventions.items()}
        return {
            "model_hash": self.model.content_hash,
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "torch": torch.__version__,
            "items": hashlib.sha256(items.encode()).hexdigest(),
            "interventions": hashlib.sha256(json.dumps(told).encode()).hexdigest(),
            "kl": self.kl,
            "share": self.share,
        }

    def left(self, item: Item, log: Log) -> list[list[str]]:
        """Names of what is still to be run on an item, run by run; first `none`.

        The heads of a layer run together on a GPU. What runs together depends on the
        plan alone, so that a resumed sweep gives the same bits.
        """
        begin, end = item.scored
        n_logits = (end - begin) * (self.model.anatomy.vocab_size or 1)
        fitting = min(TOKENS // len(item.ids), LOGITS // n_logits)
        most = 1 if self.model.device.type == "cpu" else max(fitting, 1)
        runs, before = [[NONE]], None
        for name, each in self.interventions.items():
            block = each.first_block(self.model.anatomy) if each.only_outputs else None
            if block is None or block != before or len(runs[-1]) >= most:
                runs.append([])
            runs[-1].append(name)
            before = block
        done = log.results
        return [run for run in runs if any((item.name, n) not in done for n in run)]

    def begin(self, model: Model, item: Item) -> "_Begun":
        """Runs an item, and the same with wrong answers, untouched."""
        texts = (item, *item.others)
        prefixes = tuple(Prefix.of(model, text, self.limit) for text in texts)
        if self.share and item is self.items[0]:
            prefixes[0].require_shared(model)
        return _Begun(item, prefixes)

    def run(self, model: Model, begun: "_Begun", names: list[str]) -> dict[str, Scores]:
        """Scores of an item under some interventions, or untouched."""
        edits = [self.interventions[name] for name in names if name != NONE]
        found: list[Scores] = [{} for _ in names]
        wrong = [[] for _ in names]
        for prefix in begun.prefixes:
            # Scored at once: the next run writes its logits to the same memory.
            ran = prefix.run(model, edits, self.share) if edits else prefix.logits[None]
            for row, logits in enumerate(ran):
                if prefix.item is begun.item:
                    found[row] = score(logits, prefix.item, self._base(prefix))
                else:
                    wrong[row].append(score(logits, prefix.item)["nll"])
        for scores, others in zip(found, wrong, strict=True):
            if others:
                scores["choice"] = float(scores["nll"] < min(others))
        return dict(zip(names, found, strict=True))

    def _base(self, prefix: Prefix) -> torch.Tensor | None:
        """What is compared with, unless comparing would take too much."""
        size = prefix.logits.numel() * prefix.logits.element_size()
        return prefix.logits if self.kl and size <= BASE else None

    def table(self, log: Log) -> xr.Dataset:
        """All results, labelled."""
        names = [NONE, *self.interventions]
        rows = [[log.results[item.name, n] for item in self.items] for n in names]
        metrics = dict.fromkeys(m for row in rows for scores in row for m in scores)
        dims = "intervention", "item"
        arrays = {
            metric: (
                dims,
                np.array([[s.get(metric, np.nan) for s in row] for row in rows]),
                attrs_of(metric),
            )
            for metric in metrics
        }
        coords: dict[str, Any] = {"intervention": np.array(names, dtype=object)}
        attrs = {"model": self.model.name, **self.identity}
        return xr.Dataset(arrays, coords | dict(coordinates(self.items)), attrs)


@dataclass(frozen=True, eq=False)
class _Begun:
    """An item's untouched runs: of itself, then of its wrong answers."""

    item: Item
    prefixes: tuple[Prefix, ...]


def _run(
    plan: _Plan, log: Log, n_workers: int | None
) -> Iterator[tuple[Item, dict[str, Scores]]]:
    """Results as they come; the next item begins while one is at work."""
    alone = plan.model.device.type != "cpu" or twin(plan.model) is plan.model
    n_workers = 1 if alone else n_workers or torch.get_num_threads()
    pool, own = workers.pool(n_workers), threading.local()
    pending: dict[Future[Any], tuple[Item, bool]] = {}
    waiting = deque(item for item in plan.items if plan.left(item, log))

    def submit(work: Callable[..., Any], item: Item, *arguments: Any) -> None:
        def on_twin() -> Any:
            if not hasattr(own, "model"):
                own.model = twin(plan.model)
            return work(own.model, *arguments)

        pending[pool.submit(on_twin)] = item, work == plan.begin

    def begin_next() -> None:
        if waiting:
            item = waiting.popleft()
            submit(plan.begin, item, item)

    begin_next()
    try:
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                item, begins = pending.pop(future)
                if not begins:
                    yield item, future.result()
                    continue
                for names in plan.left(item, log):
                    submit(plan.run, item, future.result(), names)
                begin_next()
    finally:
        for future in pending:
            future.cancel()


def _content(item: Item) -> list[Any]:
    """What of an item its scores depend on."""
    return [item.name, item.ids, item.scored, [_content(each) for each in item.others]]
