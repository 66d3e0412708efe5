"""Claims on kinds of heads: induction and echo, local and global."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.heads import HeadSet
from interp.probes.detecting import detect
from interp.probes.experiment import Progress
from interp.probes.locality import Distance, GlobalHead
from interp.probes.reach import GLOBAL, LOCAL
from interp.probes.replications.claim import Claim, Evidence, told
from interp.probes.replications.sinks import windows
from interp.tasks.repeated import repeated_random_for
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class InductionAndEcho(Claim):
    """Tang et al. 2024: two small and different sets of heads copy."""

    n_seeds: int = 4
    """Blocks of random tokens."""
    block: int = 64
    """Tokens of a block, which stands four times."""
    share: float = 0.05
    """Of the heads that are compared."""

    name = "induction_and_echo"
    statement = "Induction heads and echo heads are few, and they are different heads."
    published = (
        "14 % of the heads by induction and 1 % by echo are enough to keep accuracy "
        "when all others lose their cache; without echo heads about 10 % of needles "
        "are lost"
    )
    source = "Tang et al. 2024, RazorAttention (arXiv:2407.15891)"
    method = (
        "Both scores on repeated random tokens, all earlier copies summed, 1 being all "
        "attention. Few: at most 15 % of the heads above 0.1. The paper's blocks have "
        "2,500 tokens."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """How many heads, what they share, and how the scores correlate."""
        few = {"induction": [], "echo": []}
        shared, correlation = [], []
        for seed in range(self.n_seeds):
            told(progress, self.name, seed, self.n_seeds)
            task = repeated_random_for(model, block=self.block, seed=seed)
            ids, given = list(task.ids), {"capture": task.capture, "attrs": task.attrs}
            found = detect(trace(model, ids, **given), list(few))
            for name, values in few.items():
                values.append(100 * float((found[name] > 0.1).mean()))
            top = [set(HeadSet.top(found[name], share=self.share)) for name in few]
            shared.append(len(top[0] & top[1]) / len(top[0]))
            flat = [found[name].values.ravel() for name in few]
            correlation.append(np.corrcoef(flat)[0, 1])
        return [
            *(
                Evidence.mean(
                    f"heads with an {name} score above 0.1",
                    "% of heads",
                    values,
                    "seeds",
                    most=15.0,
                )
                for name, values in few.items()
            ),
            Evidence.mean(
                f"heads that both top {self.share:.0%} share",
                "fraction",
                shared,
                "seeds",
                most=0.2,
            ),
            Evidence.mean(
                "correlation of the scores over heads",
                "correlation",
                correlation,
                "seeds",
                least=-0.3,
                most=0.3,
            ),
        ]


@dataclass(frozen=True)
class LocalAndGlobal(Claim):
    """Li et al. 2025: some heads look at what is near, others far back."""

    n_texts: int = 8
    """Stretches of the shipped text."""
    n_tokens: int = 230
    """Of each."""
    share: float = 0.3
    """Of the heads on each side."""

    name = "local_and_global"
    statement = (
        "Heads differ in how far they look back: local heads near, global heads far, "
        "the same heads in every text."
    )
    published = (
        "The lowest and the highest 30 % of the heads by mean distance, of Qwen3-4B; "
        "no distances are given, and the sink at the first token is counted"
    )
    source = "Li et al. 2025 (arXiv:2510.13554) section 3"
    method = (
        "Mean distance of each head in stretches of equal length. Since a sink at the "
        "first token is far away for most queries, the sets are also made without it."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Distances of the sides, texts against each other, sides without the sink."""
        spans, ratio, kept = [], [], {LOCAL: [], GLOBAL: []}
        rows = windows(model, self.n_tokens, self.n_texts)
        detectors = Distance(), Distance(exclude_sink=True)
        capture = detectors[0].needs | detectors[1].needs
        for done, row in enumerate(rows):
            told(progress, self.name, done, len(rows))
            traced = trace(model, row, capture=capture)
            span, without = (each(traced) for each in detectors)
            split = GlobalHead(self.share)
            sides, others = split.finish(span), split.finish(without)
            mean = {side: float(span.where(sides == side).mean()) for side in kept}
            ratio.append(mean[LOCAL] / mean[GLOBAL])
            spans.append(span.values.ravel())
            for side, values in kept.items():
                both = ((sides == side) & (others == side)).sum()
                values.append(float(both / (sides == side).sum()))
        alike = np.corrcoef(spans)
        others = (alike.sum(1) - 1) / (len(alike) - 1)
        return [
            Evidence.mean(
                "mean distance of local heads, over that of global heads",
                "ratio",
                ratio,
                "texts",
                most=0.25,
            ),
            Evidence.mean(
                "correlation of heads' distances with those in other texts",
                "correlation",
                others,
                "texts",
                least=0.8,
            ),
            *(
                Evidence.mean(
                    f"{name} heads that are so without the sink",
                    "fraction",
                    kept[side],
                    "texts",
                    least=0.5,
                )
                for side, name in ((LOCAL, "local"), (GLOBAL, "global"))
            ),
        ]
