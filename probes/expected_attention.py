"""Attention that the queries to come are expected to pay, from the queries so far.

Queries before their rotary embedding are taken for a Gaussian of mean m and covariance
C, both are turned to the positions to come, and exp of a product has a closed mean:

    E exp(s q.k) = exp(s m.k + s^2 k.Ck / 2)
"""

from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating, lean
from interp.inputs import prepare
from interp.models import Model
from interp.probes.retention import kept_keys
from interp.probes.rotary import Rotary, watching
from interp.probes.text_experiment import TextExperiment
from interp.tap import Visit, tap


@dataclass(frozen=True)
class ExpectedAttention(TextExperiment):
    """Predicted mean attention of the queries to come on the keys that are there.

    It runs the model on one text: a trace has no queries.
    """

    n_future: int = 512
    """Positions to come, over which rotations are averaged."""
    n_sink: int = 4
    """First tokens that are left out: their queries are outliers; their keys have no
    score and stay in any case."""
    covariance: bool = True
    """Use the spread of the queries as well as their mean."""
    value_norm: bool = True
    """Multiply shares by the norm of the key's value."""
    epsilon: float = 0.0
    """Added to the shares before that."""

    name = "expected_attention"
    unit = "activation"
    long_name = "expected attention"
    description = (
        "Attention that future queries are expected to pay to the token, as a share of "
        "all that is scored, times the norm of its value unless told otherwise; NaN "
        "for the first tokens."
    )
    source = (
        "kvpress, ExpectedAttentionPress: rotations to the positions to come are "
        "averaged, and mean and covariance rotated once. Here each query head has its "
        "own score, whose mean over a KV head's is the press's; the scale is the "
        "model's; a key that no position to come has in its window gets a share of 0"
    )

    def __post_init__(self) -> None:
        """Refuse no future, and negative numbers."""
        if self.n_future < 1 or self.n_sink < 0 or self.epsilon < 0:
            raise InputError(
                "ExpectedAttention looks at one position to come or more, and has no "
                f"negative option; got {self}. Usual are 512, 4 first tokens and 0."
            )

    def __call__(
        self, model: Model, inputs: Any, *, max_tokens: int | None = None
    ) -> xr.DataArray:
        """Scores of the keys of one text.

        Args:
            model: A decoder with rotary embedding, built as Llama is.
            inputs: One text, or its token ids.
            max_tokens: Keep at most this many tokens.

        Returns:
            (layer, head, key), NaN for the first tokens; with `value_norm` in the
            model's own unit, otherwise shares that sum to 1.

        Raises:
            InputError: Several texts, or one that has only first tokens.
            UnsupportedModelError: Queries cannot be turned to other positions, or
                their attention has no closed mean.
        """
        model.anatomy.require_attention()
        names = model.anatomy.site_names
        if names != ("self",):
            raise UnsupportedModelError(
                "Expected attention was asked for; that of queries to come is a "
                f"decoder's own, and {model.name} has the sites {', '.join(names)}. "
                "Choose a decoder-only model."
            )
        prepared = prepare(model, inputs, max_tokens)
        words = prepared.decoder.text
        if len(words) != 1 or len(words[0]) <= self.n_sink:
            raise InputError(
                "Expected attention is that of one text with more than its first "
                f"{self.n_sink} tokens; got {[len(each) for each in words]} tokens. "
                "Call once for each text, or choose a smaller n_sink."
            )
        layers: list[xr.DataArray] = []
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(model.module))
            rotary = stack.enter_context(watching(model.module, model.anatomy))

            def visit(seen: Visit) -> None:
                layers.append(self._layer(seen, rotary))

            stack.enter_context(tap(model.module, visit, anatomy=model.anatomy))
            model.module(**prepared.forward, **lean(model.module))
        site = model.anatomy.at("self")[0]
        scores = xr.concat(layers, "layer", join="outer")
        scores = scores.assign_coords(
            layer=np.arange(len(layers)),
            kv_head=("head", scores["head"].values * site.n_kv_heads // site.n_heads),
            key=np.arange(scores.sizes["key"]),
            key_token=("key", np.array(words[0], dtype=object)),
        )
        return scores.rename(self.name).assign_attrs(
            units=self.unit if self.value_norm else "fraction",
            long_name=self.long_name,
            source=self.source,
            description=self.description,
            **{field.name: getattr(self, field.name) for field in fields(self)},
        )

    def keep(self, scores: xr.DataArray, budget: int) -> xr.DataArray:
        """The keys that stay: the first tokens, and those of the highest scores.

        Args:
            scores: What this gives.
            budget: Keys that stay in all.

        Returns:
            As `interp.probes.retention.kept_keys`.

        Raises:
            InputError: There is no room for the first tokens.
        """
        return kept_keys(scores, budget, first=self.n_sink)

    def _layer(self, seen: Visit, rotary: Rotary) -> xr.DataArray:
        """Scores (head, key) of one layer."""
        call = seen.call
        _require_closed_mean(seen)
        queries = rotary.queries(seen.site, call.query)[:, self.n_sink :].to(call.dtype)
        rotate = rotary.later(seen.site, self.n_future)
        mean, covariance = moments(queries)
        mean = rotate(mean[:, None])[:, 0]
        covariance = rotate(rotate(covariance).mT).mT if self.covariance else None
        shape = call.group_size, self.n_sink
        keys, values = (_of_heads(each, *shape) for each in (call.key, call.value))
        logits = log_mean_weight(
            mean, covariance, keys.to(call.dtype), call.score.scale
        )
        n_tokens, behind = call.mask.key_length, call.mask.behind
        place = torch.arange(self.n_sink, n_tokens, device=logits.device)
        gone = place < n_tokens - (n_tokens if behind is None else behind)
        scores = logits.masked_fill(gone, -torch.inf).softmax(-1).masked_fill(gone, 0.0)
        if self.value_norm:
            norms = torch.linalg.vector_norm(values, dim=-1, dtype=call.dtype)
            scores = (scores + self.epsilon) * norms
        scores = torch.nn.functional.pad(scores, (self.n_sink, 0), value=torch.nan)
        heads = np.arange(len(scores))
        return xr.DataArray(
            scores.float().cpu().numpy(), dims=("head", "key"), coords={"head": heads}
        )


def moments(
    queries: Float[Tensor, "head query d"],
) -> tuple[Float[Tensor, "head d"], Float[Tensor, "head d d"]]:
    """Mean and covariance of each head's queries, over their number."""
    mean = queries.mean(1)
    off = queries - mean[:, None]
    return mean, off.mT @ off / queries.shape[1]


def log_mean_weight(
    mean: Float[Tensor, "head d"],
    covariance: Float[Tensor, "head d d"] | None,
    keys: Float[Tensor, "head key d"],
    scale: float,
) -> Float[Tensor, "head key"]:
    """Logarithm of the mean of exp(scale q.k) over Gaussian queries q.

    Args:
        mean: Of the queries.
        covariance: Of the queries; None leaves their spread out.
        keys: Each k.
        scale: Of the products.
    """
    logits = scale * (keys @ mean[..., None])[..., 0]
    if covariance is not None:
        logits = logits + scale**2 / 2 * ((keys @ covariance) * keys).sum(-1)
    return logits


def _require_closed_mean(seen: Visit) -> None:
    score, mask = seen.call.score, seen.call.mask
    bends = {
        "caps its scores": score.softcap is not None,
        "adds a bias to them": score.position_bias is not None,
        "has a mask that is no window": not mask.is_band,
    }
    for what, does in bends.items():
        if does:
            raise UnsupportedModelError(
                f"Expected attention was asked for; {seen.site.module_name} {what}, "
                "and the mean over queries to come is not known. Choose a model that "
                "does not."
            )


def _of_heads(
    vectors: Float[Tensor, "one kv_head key d"], group_size: int, n_sink: int
) -> Float[Tensor, "head scored d"]:
    """Keys or values as each query head sees them, without the first."""
    return vectors[0, :, n_sink:].repeat_interleave(group_size, 0)
