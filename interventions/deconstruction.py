"""Attention with one of its design principles relaxed, in some layers of a model.

All of it is from Deconstructing attention (Xue et al. 2025, arXiv:2510.11602), which
trains models without a principle. Here a model trained with all of them loses one when
it is run: it will be far worse than the paper's, and only orderings can be compared.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from interp.activations import record
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.intervention import Intervention
from interp.interventions.patching import PatchHeads
from interp.interventions.principles import (
    EmbeddingAlways,
    KeyScores,
    MeanPattern,
    MixerOff,
    RandomEmbedding,
    TaylorExp,
)
from interp.models import Model

Principle = Literal[
    "off",
    "identity",
    "uniform",
    "taylor",
    "key_scores",
    "static",
    "mean",
    "random",
    "embedding",
]

WITH_REFERENCE = ("static", "mean", "random", "embedding")
"""Principles whose pattern is of another run."""


def layer_set(n_layers: int, kind: Literal["uniform", "hybrid"]) -> tuple[int, ...]:
    """The paper's sets of layers: all of them, or those with an odd number, from 0.

    Its third variant, `skip`, is the principle `off` on the same layers.

    Raises:
        InputError: There is no such set.
    """
    if kind not in ("uniform", "hybrid"):
        raise InputError(
            f"Layers are relaxed uniform (all) or hybrid (odd ones); got {kind!r}. "
            "Choose one of them, or list the layers."
        )
    return tuple(range(n_layers) if kind == "uniform" else range(1, n_layers, 2))


def deconstruct(
    model: Model,
    principle: Principle,
    layers: Iterable[int],
    reference: Any = None,
    *,
    seed: int = 0,
) -> Intervention:
    """The intervention that relaxes one principle of attention in some layers.

    `off`: attention writes nothing. `identity`: each token has its own value only.
    `uniform`: equal weights over what is seen. `taylor`: exp(s) becomes 1 + s + s^2/2.
    `key_scores`: a score depends on its key alone. `static`: the pattern of another
    text. `mean`: the mean pattern of several. `random`: the pattern of a run on
    Gaussian embeddings. `embedding`: queries and keys of every layer are made from the
    embedding.

    Args:
        model: From `interp.load`.
        principle: Which.
        layers: Of the decoder's self-attention, or of an encoder that stands alone.
        reference: Text or token ids. For `static` and `random` at least as long as the
            texts that are run (`random` takes only its length and the size of its
            embedding); for `mean` a list of such texts; for `embedding` the very text
            that will be run. These patterns do not reach beyond it: no generation.
        seed: Of `random`.

    Raises:
        InputError: An unknown principle or layer, or a reference too many or too few.
    """
    if principle not in get_args(Principle):
        raise InputError(
            f"The principles of attention are {', '.join(get_args(Principle))}; got "
            f"{principle!r}. Choose one of them."
        )
    if (reference is None) == (principle in WITH_REFERENCE):
        got = "none" if reference is None else "one"
        raise InputError(
            f"A reference text belongs to {', '.join(WITH_REFERENCE)}, to no other "
            f"principle; got {got} for {principle}. Pass it with those only."
        )
    if principle == "mean" and (isinstance(reference, str) or not len(reference)):
        raise InputError(
            f"A mean pattern is made from a list of texts; got {reference!r}. Pass "
            "[text, ...], each as long as what will be run."
        )
    layers = tuple(dict.fromkeys(layers))
    if not layers:
        raise InputError(
            f"Attention was to be relaxed ({principle}) in no layer. Name one, or take "
            "layer_set(model.anatomy.n_layers, 'uniform')."
        )
    site = "self" if "self" in model.anatomy.site_names else "encoder"
    grid = HeadGrid.of(model.anatomy, site)
    each_head = range(grid.n_heads)
    heads = HeadSet.of([(layer, h) for layer in layers for h in each_head], grid)
    qk = ("q", "k")
    match principle:
        case "off":
            return MixerOff(layers)
        case "identity":
            return AblateHeads(heads, "self")
        case "uniform":
            return AblateHeads(heads, "uniform")
        case "taylor":
            return TaylorExp(heads)
        case "key_scores":
            return KeyScores(heads)
        case "mean":
            sources = tuple(record(model, text, qk) for text in reference)
            return MeanPattern(sources, heads)
        case "static":
            return PatchHeads(record(model, reference, qk), heads, "pattern")
    other = RandomEmbedding(seed) if principle == "random" else EmbeddingAlways()
    with other(model):
        source = record(model, reference, qk)
    return PatchHeads(source, heads, "pattern")
