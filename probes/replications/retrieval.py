"""Claims on retrieval heads: few, the same everywhere, and needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.sweeping import NONE, sweep
from interp.probes.experiment import Progress
from interp.probes.needle_runs import ABOVE
from interp.probes.replications.claim import Claim, Evidence
from interp.probes.retrieval import RetrievalHeads
from interp.tasks.needle import Needle
from interp.tasks.passkey import Passkey
from interp.tasks.reading import ORCHARD, SHIPPED, shipped

if TYPE_CHECKING:
    from interp.models import Model

SOURCE = "Wu et al. 2024 (arXiv:2404.15574)"
RUNS = "retrieval_run"


@dataclass(frozen=True)
class _OnNeedles(Claim):
    """A claim on what heads do while needles are found, in two haystacks."""

    lengths: tuple[int, ...] = (150, 300)
    """Tokens of a haystack with its needle and answer."""
    depths: tuple[float, ...] = (0.2, 0.8)
    """Where the needle is; each length and depth has three needles."""

    def runs(
        self, model: "Model", folder: Path | None, progress: Progress | None
    ) -> xr.DataArray:
        """Scores (run, layer, head) of the runs in which the needle was found."""
        tasks = tuple(
            Needle(self.lengths, self.depths, haystack=shipped(name), name=name)
            for name in (ORCHARD, SHIPPED)
        )
        found = RetrievalHeads(tasks).run(model, folder=folder, progress=progress)
        return found["retrieval_runs"].dropna(RUNS, how="all")


@dataclass(frozen=True)
class FewRetrievalHeads(_OnNeedles):
    """Wu et al. 2024: less than 5 % of the heads retrieve."""

    name = "few_retrieval_heads"
    statement = "Fewer than 5 % of the heads are retrieval heads."
    published = (
        "3 to 6 % of heads score above 0.1 and 45 to 73 % score 0; from the released "
        "scores, Llama-2-7B-80K has 3.2 % above 0.1 and 70 % at 0"
    )
    source = SOURCE
    method = (
        "Share of the needle's tokens that a head copies while greedy decoding finds "
        "it, mean over runs; 0.1 makes a retrieval head. Needles are ours, haystacks "
        "short, copied tokens counted once."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Share of heads above the threshold, and of those that never copy."""
        runs = self.runs(model, folder, progress)
        scores = runs.values.reshape(runs.sizes[RUNS], -1)

        def above(index: np.ndarray) -> float:
            return 100 * float((scores[index].mean(0) > ABOVE).mean())

        def never(index: np.ndarray) -> float:
            return 100 * float((scores[index].mean(0) == 0).mean())

        n, over = len(scores), "runs that found the needle"
        return [
            Evidence.of(
                "heads with a score above 0.1", "% of heads", above, n, over, most=5.0
            ),
            Evidence.of(
                "heads that never copy", "% of heads", never, n, over, least=45
            ),
        ]


@dataclass(frozen=True)
class IntrinsicRetrieval(_OnNeedles):
    """Wu et al. 2024: the same heads retrieve, whatever the text."""

    name = "retrieval_is_intrinsic"
    statement = (
        "Which heads retrieve is a property of the model: it is the same for other "
        "needles and other texts."
    )
    published = (
        "Scores of models derived from one another correlate above 0.8; 12 heads of "
        "Llama-2-7B are active in every context"
    )
    source = SOURCE
    method = (
        "Correlation over heads of the scores in one part of the runs with those in "
        "another: two haystacks, three needles. Other checkpoints of the same model "
        "are not at hand."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Correlations between parts of the runs, and heads that all runs have."""
        runs = self.runs(model, folder, progress)
        scores = runs.values.reshape(runs.sizes[RUNS], -1)
        n, over = len(scores), "runs that found the needle"
        evidence = [
            Evidence.of(
                f"least correlation of scores between {what}",
                "correlation",
                _Agreement(scores, runs[f"retrieval_{by}"].values),
                n,
                over,
                least=0.8,
            )
            for by, what in (("task", "haystacks"), ("seed", "needles"))
        ]
        active = "heads that are active in every run"

        def always(index: np.ndarray) -> float:
            return float((scores[index] > 0).all(0).sum())

        return [*evidence, Evidence.of(active, "heads", always, n, over, least=1.0)]


@dataclass(frozen=True)
class CausalRetrieval(_OnNeedles):
    """Wu et al. 2024: without retrieval heads nothing is found, without others all."""

    share: float = 0.05
    """Of the heads that are taken out."""
    n_controls: int = 4
    """Draws of random heads, as many in each layer."""

    name = "retrieval_is_causal"
    statement = (
        "Without its retrieval heads a model no longer finds what it reads; without as "
        "many random heads it does."
    )
    published = (
        "Llama-2-7B-80K, needle in a haystack: without the top 20 heads of 1,024 "
        "recall is 63.6, without 20 random ones 94.7"
    )
    source = SOURCE
    method = (
        "The top 5 % of the heads, chosen on needles in one text, zeroed while "
        "passkeys are read in another (the paper makes their attention uniform, in "
        "decoding only). Random heads are drawn in the same layers."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Passkeys that are still found, of those that the whole model finds."""
        runs = self.runs(model, folder, progress)
        chosen_on = runs.where(runs["retrieval_task"] == ORCHARD, drop=True).mean(RUNS)
        top = HeadSet.top(chosen_on, share=self.share)
        items = Passkey((256, 384), haystack=shipped(SHIPPED), seeds=(0,)).items(model)
        changes = {"heads": AblateHeads(top)}
        controls = [f"control {n}" for n in range(self.n_controls)]
        for seed, name in enumerate(controls):
            changes[name] = AblateHeads(top.random_like(seed, overlap=True))
        out = None if folder is None else folder / f"{self.name}.jsonl"
        tell = progress and (lambda done, total: progress(self.name, done, total))
        found = sweep(model, changes, items, kl=False, out=out, progress=tell)["exact"]
        base = found.sel(intervention=NONE).values
        if base.mean() < 0.5:
            raise InputError(
                f"{model.name} finds {base.mean():.0%} of the passkeys by itself: "
                "there is nothing to lose. Choose a model that can."
            )
        without = found.sel(intervention="heads").values
        random = found.sel(intervention=controls).mean("intervention").values
        n, over = len(base), "passkeys"

        def left(values: np.ndarray):
            return lambda index: float(
                values[index].mean() / max(base[index].mean(), 1e-9)
            )

        return [
            Evidence.of(
                f"passkeys found without the top {len(top)} heads, of those found",
                "fraction",
                left(without),
                n,
                over,
                most=0.67,
            ),
            Evidence.of(
                "the same without random heads",
                "fraction",
                left(random),
                n,
                over,
                least=0.9,
            ),
            Evidence.mean(
                "the one minus the other", "fraction", without - random, over, most=0.0
            ),
        ]


class _Agreement:
    """The least correlation between parts of runs, of those with these indices."""

    def __init__(self, scores: np.ndarray, part: np.ndarray) -> None:
        self.scores, self.part = scores, part

    def __call__(self, index: np.ndarray) -> float:
        part, scores = self.part[index], self.scores[index]
        means = [scores[part == each].mean(0) for each in np.unique(part)]
        if len(means) < len(np.unique(self.part)):
            return np.nan
        return float(np.corrcoef(means).min())
