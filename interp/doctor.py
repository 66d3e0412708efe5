"""Which doors into a model there are, and whether they tell the same.

On a short text every door gives its statistics, beside those of the model's own eager
attention in float64, which is the truth here. A door agrees if it is as precise as the
eager attention in the model's own precision: its error is at most twice that one's
(the largest of the model and of three copies whose weights are moved by one rounding)
plus one rounding of the largest value.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from interp.anatomy import Site
from interp.doors import (
    SEEN,
    Arrays,
    Calls,
    defined,
    eager_arrays,
    exact,
    in_bridge,
    in_nnsight,
    ours,
    rounded,
    run,
    twin,
)
from interp.errors import InterpError
from interp.inputs import prepare
from interp.kernels.definitions import COLUMNS, ROWS
from interp.kernels.rules import AttentionCall
from interp.models import Model
from interp.peak import peak_memory
from interp.tap import Visit, computed_by_hand, door_of

TOKENS = 64
"""Of the text that every door reads."""

TWINS = (1, 2, 3)
"""Seeds of the copies that tell what rounding alone does."""


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        layers: A row for each attention module: site, layer, module, heads, kv_heads,
            d_head, window, chunk, softcap, learned_sinks, door.
        doors: A row for each door: door, works, cpu_s, peak_mib (NaN where the system
            does not tell), statistic (the one that is furthest off), error (its
            largest), allowed, agrees, says.
        capabilities: Name, available, reason.
        truth: What the errors are of.
        n_tokens: Of the text.
    """

    layers: pd.DataFrame
    doors: pd.DataFrame
    capabilities: pd.DataFrame
    truth: str
    n_tokens: int

    @property
    def agrees(self) -> bool:
        """Whether every door that works tells the same."""
        works = self.doors["works"].astype(bool)
        return bool(self.doors.loc[works, "agrees"].all())


@dataclass
class _Door:
    name: str
    run: Callable[[], Arrays]
    found: Arrays = field(default_factory=dict)
    cpu_s: float = float("nan")
    peak_mib: float = float("nan")
    why: str = ""


def examine(
    model: Model,
    inputs: Any,
    *,
    max_tokens: int | None = TOKENS,
    peers: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> Examination:
    """Runs a short text through every door.

    Args:
        model: As `interp.load` returns it; left as it was.
        inputs: A text, token ids or ready model inputs; one of them.
        max_tokens: Keep at most this many tokens; None for ready inputs.
        peers: Try the doors of other packages too, and measure time and memory.
        progress: Told the name of each door before it is tried.

    Raises:
        InputError: The text cannot be read.
        UnsupportedModelError: The model has no attention.
    """
    model.anatomy.require_attention()
    prepared = prepare(model, inputs, max_tokens)
    calls: dict[tuple[str, int], AttentionCall] = {}
    numbers = Calls()

    def keep(visit: Visit) -> None:
        calls[visit.site.name, numbers.next(visit.site)] = visit.call

    progress("reading")
    run(model, prepared, keep)
    wanted = tuple(
        s for s in (*ROWS, *COLUMNS) if s.name not in ("lse", "learned_sink")
    )
    eager = _Door(
        "eager maps", lambda: eager_arrays(twin(model), prepared, calls, wanted)
    )
    own = door_of(model.module, model.anatomy)
    doors = [eager, _Door(own, lambda: ours(model, prepared, wanted))]
    others = [
        _Door("nnsight trace", lambda: in_nnsight(model, prepared, wanted)),
        _Door(
            "TransformerLens, bridged",
            lambda: in_bridge(model, prepared, wanted, "auto"),
        ),
        _Door(
            "TransformerLens, un-bridged",
            lambda: in_bridge(model, prepared, wanted, "original"),
        ),
    ]
    doors += others if peers else []
    for door in doors:
        progress(door.name)
        _try(door, is_timed=peers)
    progress("float64")
    truth, of = exact(model, prepared, calls, wanted)
    honest = [eager.found]
    if eager.found:
        honest += [
            eager_arrays(rounded(twin(model), seed), prepared, calls, wanted)
            for seed in TWINS
        ]
    if of == SEEN:
        honest.append(defined(calls, wanted))
    rows = [_row(door, truth, honest) for door in doors]
    return Examination(
        layers=pd.DataFrame([_layer(site, model) for site in model.anatomy.sites]),
        doors=pd.DataFrame(rows),
        capabilities=pd.DataFrame(
            [vars(capability) for capability in model.anatomy.capabilities]
        ),
        truth=of,
        n_tokens=max(call.query.shape[2] for call in calls.values()),
    )


def _try(door: _Door, is_timed: bool) -> None:
    """Runs a door; what stops it is its reason."""
    try:
        if not is_timed:
            door.found = door.run()
            return
        door.run()  # first calls set up threads and caches
        with peak_memory() as peak:
            begin = time.process_time()
            door.found = door.run()
            door.cpu_s = time.process_time() - begin
        door.peak_mib = peak.n_bytes / 2**20
    except InterpError as error:
        door.why = str(error)


def _row(door: _Door, truth: Arrays, honest: list[Arrays]) -> dict[str, Any]:
    row = {
        "door": door.name,
        "works": bool(door.found),
        "cpu_s": door.cpu_s,
        "peak_mib": door.peak_mib,
        "statistic": "",
        "error": float("nan"),
        "allowed": float("nan"),
        "agrees": False,
        "says": door.why,
    }
    if not door.found:
        return row
    missing = sorted({site for site, *_ in truth.keys() - door.found.keys()})
    worst = 0.0
    for name in dict.fromkeys(name for *_, name in truth):
        keys = [key for key in truth if key[2] == name and key in door.found]
        largest = max(_largest(truth[key]) for key in keys)
        error = max(_error(door.found[key], truth[key]) for key in keys)
        rounding = max(
            (_error(e[k], truth[k]) for e in honest for k in keys if k in e),
            default=0.0,
        )
        eps = torch.finfo(door.found[keys[0]].dtype).eps
        allowed = 2 * (rounding + eps * largest) + torch.finfo(torch.float64).tiny
        share = error / allowed if error else 0.0
        if share >= worst:
            worst = share
            row |= {"statistic": name, "error": error, "allowed": allowed}
    row["agrees"] = worst <= 1 and not missing
    if missing:
        row["says"] = f"it does not reach {', '.join(missing)}"
    return row


def _error(ours: Tensor, truth: Tensor) -> float:
    """Largest difference; infinite where one has a value and the other none."""
    if not torch.equal(ours.isnan(), truth.isnan()):
        return float("inf")
    return _largest(ours.double() - truth)


def _largest(values: Tensor) -> float:
    return float(values.double().abs().nan_to_num(0.0).max()) if values.numel() else 0.0


def _layer(site: Site, model: Model) -> dict[str, Any]:
    return {
        "site": site.name,
        "layer": site.layer,
        "module": site.module_name,
        "heads": site.n_heads,
        "kv_heads": site.n_kv_heads,
        "d_head": site.d_head,
        "window": site.window,
        "chunk": site.chunk,
        "softcap": site.softcap,
        "learned_sinks": site.learned_sinks,
        "door": "torch functions"
        if site in computed_by_hand(model.module, model.anatomy)
        else "attention interface",
    }
