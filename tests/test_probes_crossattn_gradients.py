from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from crossattn_cases import heard, tiny_case
from tolerance import assert_as_precise

from interp.errors import UnsupportedModelError
from interp.probes.crossattn import gradients
from interp.probes.crossattn.forced import Remembered
from interp.probes.crossattn.gradients import GRADIENTS, GradientOptions, gradient
from interp.probes.crossattn.saliency import METHODS, Options, saliency
from interp.tap import tap

OPTIONS = GradientOptions(steps=5, samples=3, seed=4)


def by_hand(method, scores, values, baseline, token):
    """captum, called as its documentation says."""
    values = values.clone().requires_grad_()
    if method == "gradient":
        return captum.attr.Saliency(scores).attribute(values, target=token, abs=False)
    if method == "input_x_gradient":
        return captum.attr.InputXGradient(scores).attribute(values, target=token)
    if method == "integrated_gradients":
        return captum.attr.IntegratedGradients(scores).attribute(
            values, baseline, target=token, n_steps=5
        )
    torch.manual_seed(4)
    np.random.seed(4)
    return captum.attr.GradientShap(scores).attribute(
        values, baseline, target=token, n_samples=3
    )


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("family", ["whisper", "t5", "llama"])
def test_graphs_that_are_kept_change_nothing_of_captum(family, method):
    forced = tiny_case(family, torch.float64)
    for space in forced.spaces:
        values, scores = forced.of(space)
        baseline = forced.baseline(space)
        remembered = Remembered(scores, 8)
        for token in (0, len(forced.targets) - 1):
            ours = gradient(method, remembered, values, baseline, token, OPTIONS)
            theirs = by_hand(method, scores, values, baseline, token)
            assert_as_precise(ours, theirs)
        assert len(remembered.kept) <= 8


@pytest.mark.parametrize("family", ["whisper", "t5", "llama"])
def test_methods_at_the_input_share_their_gradients(family, monkeypatch):
    forced = tiny_case(family, torch.float64)
    own, taken = torch.autograd.grad, []

    def counted(outputs, inputs, toward=None, **options):
        taken.append(toward)  # captum gives none
        return own(outputs, inputs, toward, **options)

    for space in forced.spaces:
        values, scores = forced.of(space)
        shared = Remembered(scores, 1, gradients=True)
        saliency(forced, space, "gradient", Options(), shared=shared)
        monkeypatch.setattr(torch.autograd, "grad", counted)
        method = "input_x_gradient"
        saliency(forced, space, method, Options(), shared=shared)
        monkeypatch.undo()
        ours = gradient(method, shared, values, values, 1, OPTIONS)
        assert_as_precise(ours, by_hand(method, scores, values, None, 1))
    assert set(taken) == {None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["whisper", "t5", "llama"])
def test_every_method_reads_a_model_of_half_precision(family, dtype):
    half, whole = tiny_case(family, dtype), tiny_case(family)
    few = Options(masks=8, cheap_masks=8, segments=(20,))
    for space in half.spaces:
        for method in METHODS:
            found = saliency(half, space, method, few)["positions"]
            wanted = saliency(whole, space, method, few)["positions"]
            assert np.isfinite(found).all()
            if method == "gradient":  # the others are small differences
                r = np.corrcoef(found.ravel(), wanted.ravel())[0, 1]
                assert r > 0.9, (space, method, r)


def test_of_more_points_than_are_kept_the_first_ones_are():
    calls = []

    def scores(rows):
        calls.append(rows)
        return rows.square().sum(1, keepdim=True).expand(-1, 3)

    remembered = Remembered(scores, 4)
    values, zero = torch.ones(1, 2), torch.zeros(1, 2)
    options = GradientOptions(steps=6)
    for token in range(3):
        gradient("integrated_gradients", remembered, values, zero, token, options)
    with_graph = [rows for rows in calls if rows.requires_grad]
    assert len(with_graph) == 6 + 2 + 2


def test_integrated_gradients_add_up_better_with_more_steps():
    forced = heard(torch.float64)
    values, scores = forced.of("input")
    baseline = forced.baseline("input")
    with torch.no_grad():
        whole = (scores(values) - scores(baseline))[0, 0]
    missed = []
    for steps in (1, 4, 64):
        options = GradientOptions(steps=steps)
        method = "integrated_gradients"
        found = gradient(method, Remembered(scores, 64), values, baseline, 0, options)
        missed.append(abs(float(found.sum() - whole)))
    assert missed[2] < missed[0]
    assert missed[2] < 1e-2 * abs(float(whole))


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients"])
@pytest.mark.parametrize("family", ["whisper", "t5", "llama"])
def test_saliency_through_the_tap_is_that_without_it(family, method):
    forced = tiny_case(family, torch.float64)
    values, scores = forced.of("input")
    asked: Any = method, scores, values, forced.baseline("input"), 1
    seen = []
    with tap(forced.module, lambda visit: seen.append(visit.site.name)):
        within = gradient(*asked, OPTIONS)
    assert_as_precise(within, by_hand(*asked))
    assert set(seen) == (
        {"self"} if family == "llama" else {"encoder", "self", "cross"}
    )


def test_seeds_of_torch_and_numpy_are_put_back():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with gradients.seeded(9, torch.device("cpu")):
        torch.rand(3)
        np.random.rand(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_without_captum_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UnsupportedModelError, match=r"interp\[captum\]"):
        gradients.captum_attr()
