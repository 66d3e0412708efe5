"""Saliency by perturbation: what the model says when random clusters are taken away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Progress = Callable[[int, int], None]

CHANCE = 0.5
"""How likely a cluster is masked."""


HALVES = 2
"""Every other draw of a granularity belongs to the same half."""


@dataclass(frozen=True)
class Sums:
    """What random masks have shown so far, in two halves that know nothing of another.

    Attributes:
        count: `[half, cluster]` of each granularity, how often it was masked.
        first: `[half, token, cluster]` of each, sum of divergences while it was masked.
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
            [np.zeros((HALVES, size)) for size in sizes],
            [np.zeros((HALVES, n_tokens, size)) for size in sizes],
            [np.zeros((HALVES, n_tokens, size)) for size in sizes],
        )

    def saliency(self, clusters: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean divergence `[token, ...]` while a cell was masked, and standard error.

        Cells that were never masked have saliency 0 and no known error (NaN).
        """
        count, first, second = (
            _in_cells(sums, clusters).sum(0)
            for sums in (self.count, self.first, self.second)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = first / count
            spread = np.maximum(second / count - mean**2, 0) * count / (count - 1)
            error = np.sqrt(spread / count)
        return np.nan_to_num(mean), np.where(count > 1, error, np.nan)

    def halves(self, clusters: Sequence[np.ndarray]) -> np.ndarray:
        """The mean divergence `[half, token, ...]` by either half alone."""
        count, first = (_in_cells(sums, clusters) for sums in (self.count, self.first))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nan_to_num(first / count[:, None])


def _in_cells(sums: Sequence[np.ndarray], clusters: Sequence[np.ndarray]) -> np.ndarray:
    """`[half, ...]`, what clusters have at each of their cells, over granularities."""
    return np.sum(
        [each[..., own] for each, own in zip(sums, clusters, strict=True)], axis=0
    )


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
            half = number // len(clusters) % HALVES
            rng = np.random.default_rng([seed, number])
            masked = rng.random(sums.count[which].shape[1]) < CHANCE
            gone = expand(masked[clusters[which]]).to(values.device)
            moved = log_probabilities(torch.where(gone, baseline, values))
            divergence = (known.exp() * (known - moved)).sum(-1)[0].double()
            kl = divergence.clamp(min=0).cpu().numpy()[:, None]
            sums.count[which][half, masked] += 1
            sums.first[which][half][:, masked] += kl
            sums.second[which][half][:, masked] += kl**2
            progress(number + 1, n_masks)
    return Sums(sums.count, sums.first, sums.second, n_masks)
