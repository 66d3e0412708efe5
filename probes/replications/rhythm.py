"""A claim on reasoning: where heads look back, and what later tokens come back to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from interp.probes.chain_trace import trace_chain
from interp.probes.experiment import Progress
from interp.probes.horizons import label
from interp.probes.preplan import rhythm
from interp.probes.replications.claim import Claim, Evidence, told
from interp.probes.rhythm import Rhythm
from interp.tasks.chains import QUESTIONS, Chains
from interp.tasks.reading import shipped

if TYPE_CHECKING:
    from interp.models import Model

ALL = (0, None)
"""The horizon of the paper's analysis: from the token to the end."""


@dataclass(frozen=True)
class PreplanThenAnchor(Claim):
    """Li et al. 2025: tokens that look back come just before those looked at later."""

    n_chains: int = 24
    """Questions that the model answers."""
    max_new_tokens: int = 128
    """Of each answer."""

    name = "preplan_then_anchor"
    statement = (
        "In chains of reasoning, anchors (FAI peaks) come at or right after tokens "
        "that look back (WAAD peaks) more often than by chance; there the next token "
        "is less certain, and receiver heads look at the same anchors."
    )
    published = (
        "Qwen3-4B on GSM8K: anchors after a WAAD peak 36.9 % by chance, 52.5 % "
        "observed (lift 0.42); entropy 0.239 and 0.361 nats (0.52); receiver heads' "
        "peaks that are global ones 22.4 and 60.8 % (1.71)"
    )
    source = "Li et al. 2025 (arXiv:2510.13554) section 4"
    method = (
        "Chains that the model itself writes, sampled at 0.7, on shipped questions; it "
        "is far too small to solve most. Peaks are the top 20 % of tokens, since the "
        "paper does not say what a peak is. Lift: observed over expected, minus 1; "
        "expected with shuffled peaks, as in the paper."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Lifts of the three links."""
        questions = shipped(QUESTIONS).splitlines()[: self.n_chains]
        source = [{"question": each} for each in questions]
        task = Chains(source, max_new_tokens=self.max_new_tokens)
        tell = progress and (
            lambda name, done, total: progress(f"chain {name}", done, total)
        )
        items = task.items(model, folder=folder, progress=tell)
        options = Rhythm(horizons=(ALL,))
        traces: list[xr.DataTree] = []
        for done, item in enumerate(items):
            told(progress, self.name, done, len(items))
            traces.append(trace_chain(model, item, options))
        found = rhythm(traces, options=options)
        asked = {
            "follows": "anchors at or after a WAAD peak",
            "entropy": "entropy at WAAD peaks",
            "receivers": "receiver heads' peaks that are global ones",
        }
        n = f"{len(items)} chains"
        evidence = []
        for link, what in asked.items():
            at = found.sel(link=link, horizon=label(ALL))
            low, high = at["lift_interval"].values
            lift = float(at["mean_lift"])
            evidence.append(
                Evidence(
                    f"{what}, lift", "fraction", lift, float(low), float(high), n, 0.0
                )
            )
        return evidence
