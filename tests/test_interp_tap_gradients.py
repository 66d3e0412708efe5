"""Gradients through a model that is traced or edited."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import xarray as xr
from tiny_gradients import exact, gradients
from tiny_models import D_MODEL, tiny
from tolerance import assert_as_precise
from torch import Tensor, nn

import interp
from interp.activations import record
from interp.errors import InputError, KernelUnavailableError
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.activations import Steer
from interp.interventions.calibration import CalibrateSinks
from interp.interventions.edges import CutEdges
from interp.interventions.intervention import Intervention
from interp.interventions.local import LocalHeads
from interp.interventions.patching import PatchHeads
from interp.interventions.principles import KeyScores, MeanPattern, TaylorExp
from interp.interventions.sinks import ScaleSinks, Temperature
from interp.kernels.definitions import Entropy, Received
from interp.tap import Visit, tap

FAMILIES = ("llama", "gemma2", "gemma3", "gpt_oss", "t5", "whisper", "modernbert")
BY_HAND = ("gptj", "falcon", "bloom")
"""Families that compute attention by themselves."""


@pytest.fixture
def softmax_in_double(monkeypatch):
    """Families that compute the softmax in float32 whatever they are given do not."""

    def softmax(scores: Tensor, dim: int, dtype: Any = None, **options: Any) -> Tensor:
        return torch.softmax(scores, dim)

    monkeypatch.setattr(nn.functional, "softmax", softmax)


@pytest.mark.usefixtures("softmax_in_double")
@pytest.mark.parametrize("name", [*FAMILIES, *BY_HAND])
def test_gradients_through_the_tap_are_those_without_it(name, untouched):
    model, inputs = exact(name)
    seen: list[Visit] = []
    with untouched(model):
        within = gradients(model, inputs, tap(model, seen.append))
    if name == "gemma2":
        # SDPA of some versions leaves its soft cap out.
        model.set_attn_implementation("eager")
    without = gradients(model, inputs, nullcontext())
    assert seen
    assert within.keys() == without.keys()
    for part, slope in within.items():
        assert_as_precise(slope, without[part], name=part)


def test_statistics_are_measured_meanwhile_and_have_no_gradient():
    model, inputs = tiny("gemma3")
    wanted = (Entropy(), Received())
    quiet: list[Visit] = []
    seen: list[Visit] = []
    with torch.no_grad(), tap(model, quiet.append, wanted=lambda site: wanted):
        model(**inputs)
    with tap(model, seen.append, wanted=lambda site: wanted):
        model(**inputs)
    for one, other in zip(seen, quiet, strict=True):
        assert one.output.requires_grad
        assert torch.equal(one.output, other.output)
        for name, array in one.arrays.items():
            assert not array.requires_grad
            torch.testing.assert_close(
                array, other.arrays[name], rtol=0, atol=0, equal_nan=True
            )


def test_what_a_visit_shows_is_a_part_of_the_graph():
    model, inputs = exact("llama")
    seen: list[Visit] = []
    with tap(model, seen.append):
        loss = model(**inputs).logits[:, -1].sum()
    first = seen[0]
    shown = first.output, first.call.query, first.call.key, first.call.value
    slopes = torch.autograd.grad(loss, shown)
    for slope, tensor in zip(slopes, shown, strict=True):
        assert slope.shape == tensor.shape
        assert slope.abs().max() > 0


def test_dropout_of_attention_is_refused_where_gradients_are_recorded():
    model, inputs = tiny("gpt2")
    model.train()
    with tap(model, lambda visit: None):
        with pytest.raises(InputError, match=r"drops 10%.*eval\(\)"):
            model(**inputs)
        with torch.no_grad():
            model(**inputs)


DIRECTION = torch.ones(D_MODEL, dtype=torch.float64)

CHANGES: dict[str, Callable[[HeadSet, xr.DataTree], Intervention]] = {
    "zero": lambda some, other: AblateHeads(some),
    "uniform": lambda some, other: AblateHeads(some, "uniform"),
    "self": lambda some, other: AblateHeads(some, "self"),
    "cut": lambda some, other: CutEdges([5, 7], [2, 3]),
    "sink": lambda some, other: ScaleSinks(some, 0.3),
    "sink key": lambda some, other: ScaleSinks(some, 0.3, on="key"),
    "temperature": lambda some, other: Temperature(some, 2.0),
    "calibrated": lambda some, other: CalibrateSinks(some, beta=0.4, threshold=0.1),
    "local": lambda some, other: LocalHeads(some, recent=3, first=1),
    "Taylor": lambda some, other: TaylorExp(some),
    "pattern": lambda some, other: PatchHeads(other, some, "pattern"),
    "output": lambda some, other: PatchHeads(other, some, "head_output"),
    "mean pattern": lambda some, other: MeanPattern((other, other), some),
    "steered": lambda some, other: Steer(DIRECTION, 1),
    "two": lambda some, other: Temperature(some, 2.0) + CutEdges([5, 7], [2, 3]),
}
"""Of some heads, and of another run: one of each kind."""


@pytest.fixture(scope="module")
def model() -> interp.Model:
    """In float64; a Llama would compute its norms in float32."""
    return interp.load(exact("gpt2")[0])


@pytest.fixture(scope="module")
def other(model) -> xr.DataTree:
    """Another run."""
    return record(model, torch.arange(40, 52)[None], ("q", "k", "head_output"))


@pytest.mark.parametrize("kind", CHANGES)
def test_gradients_under_an_intervention_are_those_of_finite_differences(
    kind, model, other
):
    some = HeadSet.parse("L0.H1,L1.H2", model.anatomy)
    embedded = model.module.get_input_embeddings()(torch.arange(10, 22)[None])

    def logits(embedded: Tensor) -> Tensor:
        return model.module(inputs_embeds=embedded).logits[:, -2:]

    with CHANGES[kind](some, other)(model):
        start = embedded.detach().requires_grad_()
        assert torch.autograd.gradcheck(logits, start, fast_mode=True)


def test_an_intervention_made_of_queries_and_keys_is_refused_under_a_gradient(model):
    with KeyScores(HeadSet.parse("L1.H2", model.anatomy))(model):
        loss = model.module(torch.arange(10, 22)[None]).logits.sum()
        with pytest.raises(KernelUnavailableError, match="made of what requires"):
            loss.backward()
