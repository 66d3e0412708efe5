"""Parts of a call that a GPU program is launched on, and what it looks at near by."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels.intervals import Intervals

NEAR = 128
"""Distances below this are not told as a difference of two larger ones."""


@dataclass(frozen=True)
class Stripe:
    """Some queries, the ranges of keys they see, and their mask if that is no range."""

    q0: int
    q1: int
    shown: Intervals
    mask: Tensor | None


@dataclass(frozen=True)
class Near:
    """What matters pair by pair near the diagonal, in tokens."""

    clip: int = 0
    window: int = 0
    nearest: int = 0
    farthest: int = -1
    distance: bool = False

    @classmethod
    def of(cls, wanted: Mapping[type[d.Statistic], d.Statistic]) -> "Near":
        """From the statistics that are wanted."""
        asked = {kind: statistic.parameters for kind, statistic in wanted.items()}
        future = asked.get(d.FutureInfluence, {"near": 0, "far": -1})
        return cls(
            clip=asked.get(d.ClippedDistance, {}).get("clip", 0),
            window=asked.get(d.LocalMass, {}).get("window", 0),
            nearest=future["near"],
            farthest=future["far"],
            distance=d.Distance in wanted,
        )

    @property
    def reach(self) -> int | None:
        """Pairs nearer than this matter one by one; None where none do."""
        least = NEAR if self.distance else 0
        return max(self.clip, self.window, self.farthest + 1, least) or None
