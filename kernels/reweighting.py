"""The door: the output of attention under a change, by the implementation that fits."""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels import availability, weighted
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall

IMPLEMENTATIONS = ("triton", "torch")
"""A fused program on CUDA; row blocks on any device."""


def reweighted(
    call: AttentionCall, reweight: Reweight, impl: str = "auto"
) -> tuple[
    Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]
]:
    """Output and log-sum-exp of attention under a change, exact, in linear memory.

    Args:
        call: The attention call; padding may be anywhere.
        reweight: What to change.
        impl: "triton" (CUDA, or Triton's interpreter), "torch" (any device), or "auto".

    Returns:
        Output in the value's type; log-sum-exp of the changed logits in nats, without
        a learned sink. Rows that see no key give zeros and -inf.

    Raises:
        ShapeError: The change does not fit the call.
        KernelUnavailableError: `impl` names nothing, or nothing that runs here.
    """
    reweight.check(call)
    if choose(impl, call) == "torch":
        return weighted.attend(call, edits=[reweight])[:2]
    from interp.kernels import triton_reweighting  # not every machine has Triton

    with torch.no_grad():
        return triton_reweighting.attend(call, reweight)


def choose(impl: str, call: AttentionCall) -> str:
    """The implementation that `impl` stands for.

    Raises:
        KernelUnavailableError: There is none of that name, or it cannot run here.
    """
    if impl == "auto":
        return "triton" if availability.suits_triton(call) else "torch"
    availability.require(impl, IMPLEMENTATIONS, call, instead="torch")
    return impl
