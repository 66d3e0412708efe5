"""The loss that keeps other tokens from becoming sinks while a model is trained."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError


def decorrelation_loss(
    hidden_states: Sequence[Float[Tensor, "batch token d_model"]], n_prefix: int
) -> Float[Tensor, ""]:
    """Mean squared cosine between the first token and those of the prefix.

    Intermediate sinks carry the massive channels of the first token, and so its
    direction. Gradients flow into both tokens of a pair. Added to the cross-entropy
    with a weight of its own; the paper takes 10,000.

    Args:
        hidden_states: As transformers gives with `output_hidden_states=True`. The
            embedding and the last, which is normalized, are left out. Texts must not
            be padded on the left.
        n_prefix: Tokens after the first that are compared with it, such as those of
            a prompt before the answer; the same for all texts of the batch.

    Returns:
        In [0, 1], float32 or wider; it can be differentiated.

    Raises:
        InputError: There is no layer in between, or the prefix does not fit the text.

    Source: Anand et al. 2025 (arXiv:2510.22603).
    """
    inner = hidden_states[1:-1]
    if not inner:
        raise InputError(
            "The hidden states of at least two blocks are needed; got "
            f"{len(hidden_states)} tensors. Pass all that output_hidden_states gives."
        )
    n_tokens = inner[0].shape[1]
    if not 1 <= n_prefix < n_tokens:
        raise InputError(
            f"{n_prefix} tokens after the first were to be compared with it; the text "
            f"has {n_tokens - 1} of them. Choose 1 to {n_tokens - 1}."
        )
    squares = []
    for states in inner:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        first, others = wide[:, :1], wide[:, 1 : n_prefix + 1]
        cosine = torch.nn.functional.cosine_similarity(first, others, dim=-1)
        squares.append(cosine.square().mean())
    return torch.stack(squares).mean()
