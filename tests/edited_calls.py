"""Random attention calls under an intervention, and the dense weights to hold it to."""

from typing import Any

import torch
from attention_cases import make
from tiny_models import ENCODER_DECODERS, FAMILIES
from torch import Tensor

from interp.anatomy import Site
from interp.heads import HeadGrid, HeadSet
from interp.interventions.intervention import Intervention
from interp.kernels import reference, weighted
from interp.kernels.definitions import Pattern
from interp.kernels.rules import AttentionCall

N = 40
SITE = Site("self", 1, "layers.1", 4, 2, 8, 8)
GRID = HeadGrid(3, 4, 2)
SOME = HeadSet.of([(1, 0), (1, 1), (2, 2), (2, 3)], GRID)
ON, OFF = [0, 1], [2, 3]
"""Heads of the site that are in `SOME`, and those that are not."""

DECODERS = [
    name
    for name in FAMILIES
    if name not in (*ENCODER_DECODERS, "bert", "modernbert", "vit")
]
"""Families of one stack that looks back only."""

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"mask": "window"},
    "left padding": {"n_batch": 2, "padding": "left"},
    "right padding": {"n_batch": 2, "padding": "right"},
    "learned sinks": {"sinks": True},
    "softcap": {"softcap": 2.0},
    "position bias": {"bias": True, "n_batch": 2, "padding": "left"},
    "mask tensor": {"mask": "dense"},
}


def call_of(name: str) -> AttentionCall:
    """A call in float64."""
    return make(N, dtype=torch.float64, **CALLS[name]).call


def logits_of(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, what is visible, and each token's place in its own text, all dense."""
    visible = reference.visible(call).expand(call.n_batch, call.n_heads, -1, -1)
    place = torch.full((call.n_batch, call.mask.key_length), -1)
    for sample, _, keys in call.samples():
        place[sample, keys] = torch.arange(keys.stop - keys.start)
    return reference.scores(call), visible, place


def weights_of(call: AttentionCall, logits: Tensor, visible: Tensor) -> Tensor:
    """The softmax of dense logits with the call's learned sinks; 0 for blind rows."""
    hidden = logits.masked_fill(~visible, -torch.inf)
    norm = hidden.logsumexp(-1, keepdim=True)
    if call.score.sink_logits is not None:
        sink = call.score.sink_logits.to(norm)[:, None, None]
        norm = torch.logaddexp(norm, sink)
    return (hidden - norm).exp().nan_to_num(0.0)


def edited(call: AttentionCall, intervention: Intervention) -> tuple[Tensor, Tensor]:
    """Output and weights of the call at `SITE` under an intervention."""
    call = intervention.inputs(SITE, call)
    edits = intervention.weights(SITE, call)
    output, _, arrays = weighted.attend(call, [Pattern()], edits)
    return intervention.output(SITE, call, output), arrays["pattern"].nan_to_num(0.0)


def same(got: Tensor, wanted: Tensor) -> None:
    """Equal but for the rounding of float64."""
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)
