"""Saliency by perturbation: what the model says when random clusters are taken away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Progress = Callable[[int, int], None]

CHANCE = 0.5
"""How likely a cluster is masked."""


@dataclass(frozen=True)
class Sums:
    """What random masks have shown so far.

    Attributes:
        count: `[cluster]` of each granularity, how often it was masked.
        first: `[token, cluster]` of each, sum of divergences while it was masked.
        second: The same of their squares.
        n_masks: Masks in all.
    """

    count: list[np.ndarray]
    first: list[np.ndarray]
    second: list[np.ndarray]
    n_masks: int = 0

    @classmethod
    def empty(cls, clusters: Sequence[np.ndarray], n_tokens: int) -> "Sums":
        """Before the first mask."""
        sizes = [int(each.max()) + 1 for each in clusters]
        return cls(
            [np.zeros(size) for size in sizes],
            [np.zeros((n_tokens, size)) for size in sizes],
            [np.zeros((n_tokens, size)) for size in sizes],
        )

    def saliency(self, clusters: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean divergence `[token, ...]` while a cell was masked, and standard error.

        Cells that were never masked have saliency 0 and no known error (NaN).
        """
        count = sum(c[own] for c, own in zip(self.count, clusters, strict=True))
        first, second = (
            sum(s[:, own] for s, own in zip(sums, clusters, strict=True))
            for sums in (self.first, self.second)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = first / count
            spread = np.maximum(second / count - mean**2, 0) * count / (count - 1)
            error = np.sqrt(spread / count)
        return np.nan_to_num(mean), np.where(count > 1, error, np.nan)


def perturb(
    log_probabilities: Callable[[Tensor], Tensor],
    values: Tensor,
    baseline: Tensor,
    clusters: Sequence[np.ndarray],
    expand: Callable[[np.ndarray], Tensor],
    n_masks: int,
    *,
    seed: int = 0,
    sums: Sums | None = None,
    progress: Progress = lambda done, total: None,
) -> Sums:
    """Masks clusters at random and sums up how far the output moves.

    Mask `n` takes granularity `n mod len(clusters)`, and masks each of its clusters
    with probability one half, from random numbers of its own: a run that goes on from
    `sums` ends where one without a break would have.

    Args:
        log_probabilities: From `[1, ...]` to `[1, token, vocab]`.
        values: `[1, ...]`, what is read.
        baseline: What a masked cell becomes, of the same shape.
        clusters: Number of each cell's cluster, one array a granularity.
        expand: From a mask over cells to a tensor that broadcasts to `values`.
        n_masks: Masks in all.
        seed: Of the masks.
        sums: To go on from.
        progress: Told of every mask.

    Source:
        SPES (Fucci et al. 2024, arXiv:2411.01710), as Papi et al. 2025
        (arXiv:2509.18010) use it: KL(p || p masked) of each output token.
    """
    with torch.no_grad():
        known = log_probabilities(values)
        sums = sums or Sums.empty(clusters, known.shape[1])
        for number in range(sums.n_masks, n_masks):
            which = number % len(clusters)
            rng = np.random.default_rng([seed, number])
            masked = rng.random(len(sums.count[which])) < CHANCE
            gone = expand(masked[clusters[which]]).to(values.device)
            moved = log_probabilities(torch.where(gone, baseline, values))
            divergence = (known.exp() * (known - moved)).sum(-1)[0].double()
            kl = divergence.clamp(min=0).cpu().numpy()[:, None]
            sums.count[which][masked] += 1
            sums.first[which][:, masked] += kl
            sums.second[which][:, masked] += kl**2
            progress(number + 1, n_masks)
    return Sums(sums.count, sums.first, sums.second, n_masks)
