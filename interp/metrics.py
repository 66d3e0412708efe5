"""How well a model predicts the tokens that an item scores."""

import re
from collections import Counter, defaultdict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from interp.errors import ShapeError
from interp.tasks.items import Item

CHUNK = 1 << 22
"""Logits that are worked on at a time."""


def score(
    logits: Float[Tensor, "scored vocab"],
    item: Item,
    base: Float[Tensor, "scored vocab"] | None = None,
) -> dict[str, float]:
    """Every metric of the tokens that an item scores, predicted from the true ones.

    Computed in float32, or in the logits' own type if that is wider.

    Args:
        logits: Of the rows that predict the scored tokens.
        item: Says which tokens they are.
        base: Logits of the unchanged model for the same rows.

    Returns:
        `nll`: mean negative log-likelihood per token, in nats.
        `accuracy`: share of tokens that have the largest logit.
        `exact`: 1 if all have, else 0. Then greedy decoding gives exactly the answer:
        its first token is chosen, so the second is predicted after the true first, and
        so on; and conversely.
        With `base` also `kl`: mean KL(base || this) per token, in nats, and
        `agreement`: share of rows where both have the same largest logit.

    Raises:
        ShapeError: The rows are not one for each scored token, or those of `base`.
    """
    begin, end = item.scored
    if len(logits) != end - begin or (base is not None and base.shape != logits.shape):
        raise ShapeError(
            f"The scores of {end - begin} tokens of item {item.name} need as many rows "
            f"of logits; got {tuple(logits.shape)}"
            + ("" if base is None else f" and base {tuple(base.shape)}")
            + ". Take them from interp.evaluation.logits."
        )
    sums: dict[str, float] = defaultdict(float)
    targets = torch.tensor(item.ids[begin:end], device=logits.device)
    step = max(1, CHUNK // logits.shape[1])
    for rows in (slice(n, n + step) for n in range(0, len(targets), step)):
        log_p = _log_probabilities(logits[rows])
        chosen = logits[rows].argmax(-1)
        sums["nll"] -= log_p.gather(1, targets[rows, None]).double().sum().item()
        sums["accuracy"] += (chosen == targets[rows]).sum().item()
        if base is not None:
            rows_of_base = base[rows].to(logits.device)
            log_base = _log_probabilities(rows_of_base)
            p_base = log_base.exp()
            # A token that the base rules out adds nothing; 0 times infinity would.
            gap = torch.where(p_base > 0, log_base - log_p, 0)
            sums["kl"] += (p_base * gap).double().sum().item()
            sums["agreement"] += (rows_of_base.argmax(-1) == chosen).sum().item()
    means = {name: total / len(targets) for name, total in sums.items()}
    return means | {"exact": float(means["accuracy"] == 1)}


def rouge_recall(prediction: str, reference: str) -> float:
    """ROUGE-1 recall: share of the reference's words that the prediction has.

    Words are compared in lower case; one that occurs several times counts as often as
    both have it.

    Returns:
        Fraction in [0, 1]; NaN if the reference has no word.

    Source:
        Lin 2004, without stemming.
    """
    predicted, wanted = (
        Counter(re.findall(r"\w+", text.lower())) for text in (prediction, reference)
    )
    return (predicted & wanted).total() / wanted.total() if wanted else float("nan")


def _log_probabilities(
    logits: Float[Tensor, "row vocab"],
) -> Float[Tensor, "row vocab"]:
    return log_softmax(
        logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32)
    )
