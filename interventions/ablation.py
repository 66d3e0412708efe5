"""Heads taken out of a running model, at what they give to the output projection."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.activations import record
from interp.anatomy import Anatomy, Site
from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.edges import own_heads
from interp.interventions.intervention import Intervention, heads_at
from interp.interventions.positions import queries_of, tokens_of
from interp.kernels.edits import Block, Edit
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall
from interp.models import Model

Mode = Literal["zero", "mean", "resample", "uniform", "self"]


@dataclass(frozen=True, eq=False)
class AblateHeads(Intervention):
    """Heads whose contribution is removed or made uninformative.

    `zero`, `mean` and `resample` replace a head's output before the output projection;
    `uniform` and `self` leave its values alone and replace its weights: equal over the
    keys that a query sees, or all on the query's own token.

    Source: uniform weights over all rows are AttentionInfluence's (arXiv:2505.07293);
    a literal 1 / length would look ahead. A learned sink keeps its logit.

    Attributes:
        heads: Which; `heads.as_kv_groups()` takes whole groups.
        mode: What takes the place of a head.
        reference: For `mean` what `head_means` gives; for `resample` the array
            `head_output` of `interp.activations.record` on another text of at least
            the same length. Without one, `resample` takes each sample of a batch from
            the sample before it.
    """

    heads: HeadSet
    mode: Mode = "zero"
    reference: xr.DataArray | None = None

    def __post_init__(self) -> None:
        """Refuse a mode that there is not, or that lacks its reference."""
        if self.mode not in get_args(Mode):
            raise InputError(
                f"Heads are ablated by {', '.join(get_args(Mode))}; got {self.mode!r}. "
                "Choose one of them."
            )
        if self.mode == "mean" and self.reference is None:
            raise InputError(
                "A mean ablation needs the means; got no reference. Pass "
                "reference=head_means(model, texts)."
            )
        if self.reference is not None and self.mode not in ("mean", "resample"):
            raise InputError(
                f"A reference was given for mode {self.mode!r}, which uses none. Leave "
                "it out, or choose mean or resample."
            )

    @property
    def only_outputs(self) -> bool:
        """Unless weights are replaced, or samples of a batch mixed."""
        return self.mode == "zero" or self.reference is not None

    def check(self, anatomy: Anatomy) -> None:
        """Refuses heads that the model has not, and a reference of other heads."""
        super().check(anatomy)
        if self.reference is None:
            return
        sites = anatomy.at(self.heads.grid.site)
        dims = "layer", "head", "d_value"
        wanted = len(sites), sites[0].n_heads, sites[0].d_value
        got = tuple(self.reference.sizes.get(dim, 0) for dim in dims)
        if got != wanted:
            raise InputError(
                f"The reference must hold {dims} of sizes {wanted}; got {got}. Make it "
                "with this model."
            )

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """Uniform or own-token weights."""
        heads = heads_at(self.heads, site)
        if not heads or self.mode not in ("uniform", "self"):
            return ()
        if self.mode == "self":
            return (_OwnToken(tuple(heads)),)
        scale = torch.ones(call.n_heads, device=call.query.device, dtype=call.dtype)
        scale[heads] = 0.0
        return (Reweight(scale=scale),)

    def output(self, site: Site, call: AttentionCall, output: Tensor) -> Tensor:
        """Zeros, means, or another text's output."""
        heads = heads_at(self.heads, site)
        if not heads or self.mode in ("uniform", "self"):
            return output
        output = output.clone()
        if self.mode == "zero":
            output[:, heads] = 0
        elif self.reference is not None:
            own = self.reference.isel(layer=site.layer, head=heads)
            _put(own.transpose(..., "head", "d_value"), call, output, heads)
        elif output.shape[0] > 1:
            output[:, heads] = output[:, heads].roll(1, 0)
        else:
            raise InputError(
                "A resample ablation without a reference takes from another sample of "
                "the batch; got one sample. Pass several, or a reference."
            )
        return output


@dataclass(frozen=True)
class _OwnToken(Edit):
    """All of the weight of some heads on the query's own token, if it sees it."""

    heads: tuple[int, ...]

    keeps_softmax = True

    def change_logits(self, logits: Tensor, block: Block) -> None:
        other = block.key != block.query[:, None]
        for head in own_heads(self.heads, block):
            logits[head].masked_fill_(other, -torch.inf)


def _put(
    values: xr.DataArray, call: AttentionCall, output: Tensor, heads: list[int]
) -> None:
    """Recorded outputs of some heads in the place of their own."""
    for sample, queries, place in queries_of(call):
        own = values.isel(sample=sample) if "sample" in values.dims else values
        if "query" in own.dims:
            tensor = tokens_of(own, place).transpose(0, 1)
        else:
            tensor = torch.as_tensor(own.values)[:, None]
        output[sample, heads, queries] = tensor.to(output)


def head_means(
    model: Model,
    inputs: Iterable[Any],
    *,
    per_position: bool = False,
    site: str = "self",
) -> xr.DataArray:
    """Mean output of every head over a reference corpus, before the projection.

    Args:
        model: Whose heads.
        inputs: Texts, or lists of token ids.
        per_position: One mean for each position, as long as the shortest text;
            otherwise one over all positions of all texts.
        site: Kind of attention.

    Returns:
        `(layer, head, d_value)`, with `query` after `layer` if by position, in the
        unit of the model's activations.

    Raises:
        InputError: There is no text.
    """
    total, count = None, 0
    for each in inputs:
        outputs = record(model, each, ("head_output",))[site]["head_output"]
        if total is not None and per_position:
            length = min(total.sizes["query"], outputs.sizes["query"])
            total, outputs = (a.isel(query=slice(length)) for a in (total, outputs))
        count += 1 if per_position else outputs.sizes["query"]
        own = outputs.astype(np.float64)
        own = own if per_position else own.sum("query")
        total = own if total is None else total + own
    if total is None:
        raise InputError("Means need at least one text; got none. Pass some texts.")
    return (total / count).rename("head_means")
