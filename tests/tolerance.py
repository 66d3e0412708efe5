"""The one tolerance: as precise as a dense computation at the same precision."""

import torch
from torch import Tensor


def assert_as_precise(
    ours: Tensor,
    truth: Tensor,
    *eager: Tensor,
    name: str = "result",
    elsewhere: float = 0.0,
) -> None:
    """`max|ours - truth| <= 2 (max|eager - truth| + eps max|truth|)`, NaN where it is.

    Several honest dense computations may be given, the worst of them counts. Rounding
    is a matter of luck, and where a kernel is handed a rounded log-sum-exp, the dense
    twin must be too: `exp(score - lse)` inherits `eps |lse|` whoever computes it.

    Args:
        ours: What is tested.
        truth: The definition, in float64.
        eager: The definition in the precision of `ours`, once or in several ways.
        name: What it is called in the message.
        elsewhere: Error that the dense computation makes in values of the same kind,
            where only few of them are looked at.
    """
    assert ours.shape == truth.shape, f"{name}: {ours.shape} for {truth.shape}"
    if ours.dtype == torch.float64:
        torch.testing.assert_close(
            ours, truth, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )
        return
    hidden = truth.isnan()
    assert torch.equal(ours.isnan(), hidden), f"{name} is NaN at other places"
    assert not (ours.isinf() & truth.isfinite()).any(), f"{name} is infinite"
    error = _largest(ours, truth)
    honest = max([_largest(twin, truth) for twin in eager], default=0.0)
    least = torch.finfo(ours.dtype).eps * _largest(truth, torch.zeros_like(truth))
    least += torch.finfo(ours.dtype).tiny  # below it, numbers have fewer digits
    allowed = 2 * (max(honest, elsewhere) + least)
    assert error <= allowed, f"{name} is off by {error:.3g}, allowed are {allowed:.3g}"


def assert_same_index(
    ours: Tensor, values: Tensor, visible: Tensor, allowed: float = 0.0
) -> None:
    """Indices along the last axis point at the largest values; -1 where none is seen.

    Args:
        ours: `[...]`.
        values: `[..., n]` in float64.
        visible: `[..., n]`, what can be chosen.
        allowed: How far below the largest a chosen value may lie: rounding decides
            between values that are as good as equal.
    """
    sees = visible.any(-1)
    assert torch.equal(ours >= 0, sees), "a blind row has a largest, or another none"
    chosen = values.gather(-1, ours.clamp(min=0).long()[..., None])[..., 0]
    off = float((values.amax(-1) - chosen)[sees].amax()) if sees.any() else 0.0
    assert off <= allowed, f"a chosen value is {off:.3g} below the largest"


def _largest(a: Tensor, b: Tensor) -> float:
    """Largest difference; equal infinities differ by nothing."""
    difference = (a.double() - b.double()).abs()
    difference = difference.masked_fill(a.double() == b.double(), 0.0)
    difference = difference.nan_to_num(0.0, posinf=torch.inf)
    return float(difference.max()) if difference.numel() else 0.0
