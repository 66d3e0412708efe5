"""Saliency from gradients, by captum: of each output token over what is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import UnsupportedModelError

GRADIENTS = (
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "gradient_shap",
)

AT_THE_INPUT = GRADIENTS[:2]
"""Methods that take the gradient at what is read, and nowhere else."""

Scores = Callable[[Tensor], Tensor]
"""From `[row, ...]` to `[row, token]`."""


@dataclass(frozen=True)
class GradientOptions:
    """How much is computed.

    Attributes:
        steps: Points of integrated gradients, of Gauss-Legendre quadrature.
        samples: Points of gradient SHAP.
        noise: Standard deviation of gradient SHAP's noise, of the input's own.
        seed: Of gradient SHAP; every token sees the same points.
    """

    steps: int = 32
    samples: int = 8
    noise: float = 0.0
    seed: int = 0


def gradient(
    method: str,
    scores: Scores,
    values: Tensor,
    baseline: Tensor,
    token: int,
    options: GradientOptions,
) -> Tensor:
    """A method of `GRADIENTS`, signed, of one output token.

    Args:
        method: Which.
        scores: Log-probabilities of all output tokens.
        values: `[1, ...]`, what is read.
        baseline: Of the same shape, what says nothing.
        token: Of which the saliency is taken.
        options: Steps, samples and seed.

    Returns:
        The shape of `values`, in nats (`gradient`: nats per unit of the input).

    Source:
        Simonyan et al. 2014 (gradient), Shrikumar et al. 2016 (times input),
        Sundararajan et al. 2017 (integrated), Lundberg and Lee 2017 (SHAP); through
        captum.
    """
    attr = captum_attr()
    values = values.detach().requires_grad_()
    if method == "gradient":
        return attr.Saliency(scores).attribute(values, target=token, abs=False)
    if method == "input_x_gradient":
        return attr.InputXGradient(scores).attribute(values, target=token)
    if method == "integrated_gradients":
        return attr.IntegratedGradients(scores).attribute(
            values,
            baselines=baseline,
            target=token,
            n_steps=options.steps,
            internal_batch_size=1,
        )
    with seeded(options.seed, values.device):
        return attr.GradientShap(scores).attribute(
            values,
            baselines=baseline,
            target=token,
            n_samples=options.samples,
            stdevs=options.noise * float(values.detach().std()),
        )


def captum_attr() -> Any:
    """`captum.attr`.

    Raises:
        UnsupportedModelError: captum is not installed.
    """
    try:
        from captum import attr
    except ImportError as error:
        raise UnsupportedModelError(
            "Saliency by gradients and by ablation needs captum, which is not "
            "installed. Install it with pip install 'interp[captum]', or choose "
            "methods=['perturbation']."
        ) from error
    return attr


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch and numpy, both of which captum draws from, and restores them."""
    before = np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)
