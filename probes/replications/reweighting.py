"""A claim on the first token's weight: scaling it helps with some heads, not others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.heads import HeadId, HeadSet
from interp.interventions.sinks import ScaleSinks
from interp.interventions.sweeping import NONE, sweep
from interp.probes.experiment import Progress
from interp.probes.replications.claim import Claim, Evidence
from interp.probes.replications.sinks import windows
from interp.tasks.items import Item

if TYPE_CHECKING:
    from interp.models import Model

FACTORS = (0.5, 2.0)


@dataclass(frozen=True)
class SinkReweighting(Claim):
    """Han et al. 2025: scaling the first token's weight changes accuracy by group."""

    n_validation: int = 8
    """Stretches of the shipped text that tell the groups."""
    n_test: int = 16
    """Others, that the groups are tested on."""
    n_tokens: int = 96
    """Of each."""
    share: float = 0.4
    """Of a group's heads that are scaled, as in the paper."""

    name = "sink_reweighting"
    statement = (
        "Scaling the attention to the first token changes accuracy, upwards for some "
        "groups of heads and downwards for others, and the groups carry over."
    )
    published = (
        "Llama-3.1-8B: classification 59.6 becomes 71.4 %, multiple choice 58.8 "
        "becomes 61.5 %, with the dominant group scaled by a tuned factor"
    )
    source = "Han et al. 2025, ZeroTuning (arXiv:2505.11739)"
    method = (
        "Next-token accuracy on the shipped text; no questions with choices come with "
        "it. A head index in all layers is up-effective if it does better with a "
        "factor of 2 than of 0.5 on validation stretches; the top two of each kind are "
        "scaled by 2 on test stretches. Few stretches: effects are small beside "
        "intervals."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """What scaling either group does on other stretches."""
        rows = windows(model, self.n_tokens, self.n_validation + self.n_test)
        validation, test = rows[: self.n_validation], rows[self.n_validation :]
        n_heads = model.anatomy.at("self")[0].n_heads
        profile = {
            f"{head} {factor}": ScaleSinks(_everywhere(model, [head]), factor)
            for head in range(n_heads)
            for factor in FACTORS
        }
        changed = self._changes(model, profile, validation, folder, progress)
        down, up = (
            np.array(
                [
                    float(changed.sel(intervention=f"{head} {factor}").mean())
                    for head in range(n_heads)
                ]
            )
            for factor in FACTORS
        )
        order = np.argsort(down - up, kind="stable")
        n_up = int((up > down).sum())
        n_chosen = max(round(self.share * n_heads / 2), 1)
        groups = {"up": order[:n_chosen], "down": order[-n_chosen:]}
        tested = {
            name: ScaleSinks(_everywhere(model, heads.tolist()), FACTORS[1])
            for name, heads in groups.items()
        }
        effect = self._changes(model, tested, test, folder, progress)
        own = {name: 100 * effect.sel(intervention=name) for name in groups}
        n = f"{n_up} of {n_heads} head indices are up-effective"
        return [
            Evidence.mean(
                f"accuracy, up-effective heads scaled by 2 ({n})",
                "percentage points",
                own["up"],
                "stretches",
                least=0.0,
            ),
            Evidence.mean(
                "accuracy, down-effective heads scaled by 2",
                "percentage points",
                own["down"],
                "stretches",
                most=0.0,
            ),
            Evidence.mean(
                "the one minus the other",
                "percentage points",
                own["up"] - own["down"],
                "stretches",
                least=0.0,
            ),
        ]

    def _changes(
        self,
        model: "Model",
        interventions: dict[str, ScaleSinks],
        rows: Sequence[tuple[int, ...]],
        folder: Path | None,
        progress: Progress | None,
    ) -> xr.DataArray:
        """Accuracy under each intervention minus that of the untouched model."""
        part = f"{self.name}-{len(interventions)}"
        items = [Item(str(n), row, (1, len(row))) for n, row in enumerate(rows)]
        out = None if folder is None else folder / f"{part}.jsonl"
        tell = progress and (lambda done, total: progress(part, done, total))
        found = sweep(model, interventions, items, kl=False, out=out, progress=tell)
        return found["accuracy"] - found["accuracy"].sel(intervention=NONE)


def _everywhere(model: "Model", heads: Sequence[int]) -> HeadSet:
    """These head indices, in all layers."""
    layers = range(len(model.anatomy.at("self")))
    ids = [HeadId(layer, head) for layer in layers for head in heads]
    return HeadSet.of(ids, model.anatomy)
