"""What a route is: work on an attention call whose result can be checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.kernels.rules import AttentionCall

Arrays = Mapping[str, Tensor]
Work = Callable[[], Any]


@dataclass(frozen=True)
class Route:
    """One way to compute something of an attention call.

    Attributes:
        name: As `--routes` names it.
        words: What the table calls it.
        prepare: Makes the work; what it does itself is not timed. Raises
            `NotApplicable` for what the route cannot serve.
        arrays: Of the work's result, those that can be checked, by name.
        expected: The same arrays, from the implementation that is trusted.
    """

    name: str
    words: str
    prepare: Callable[[], Work]
    arrays: Callable[[Any], Arrays]
    expected: Callable[[], Arrays]


def is_plain(call: AttentionCall) -> bool:
    """Causal from the first token on, nothing added to the scores or bent in them."""
    return call.mask.is_square_causal and is_linear(call)


def is_linear(call: AttentionCall) -> bool:
    """Scores are the scaled products, whatever the mask."""
    return call.score.softcap is None and call.score.position_bias is None


def deviation(found: Arrays, expected: Arrays) -> float:
    """Largest difference of any array, relative to its largest value.

    Infinite where one has a number and the other none. Indices are left out: a tie may
    fall either way.
    """
    worst = 0.0
    for name, truth in expected.items():
        if not truth.is_floating_point():
            continue
        truth = truth.double()
        own = found[name].double()
        numbers = truth.isfinite()
        if not torch.equal(numbers, own.isfinite()):
            return float("inf")
        if numbers.any():
            largest = truth[numbers].abs().max().clamp(min=1e-300)
            off = (own[numbers] - truth[numbers]).abs().max() / largest
            worst = max(worst, float(off))
    return worst
