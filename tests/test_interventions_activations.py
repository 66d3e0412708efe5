"""Cells set, streams steered, and what all interventions share: they go and come."""

import json
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from edited_calls import DECODERS
from tiny_models import D_MODEL, tiny

import interp
from interp.activations import record
from interp.editing import in_force
from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.activations import SetActivations, Steer, mean_activations
from interp.interventions.calibration import CalibrateSinks
from interp.interventions.deconstruction import deconstruct
from interp.interventions.edges import CutEdges
from interp.interventions.intervention import Composed, parts_of
from interp.interventions.local import LocalHeads
from interp.interventions.patching import PatchStream
from interp.interventions.sinks import ScaleSinks, Temperature

PROJECTIONS = ("o_proj", "c_proj", "dense")
TEXT = list(range(10, 20))
OTHER = [40, 41, 50, 60, 43, 44, 45, 46, 70, 71]
DIRECTION = torch.linspace(-1, 1, D_MODEL)


def load(name="llama"):
    return interp.load(tiny(name)[0])


def heads_of(model):
    grid = HeadSet.of([], model.anatomy).grid
    pairs = [(layer, head) for layer in range(2) for head in (0, 1)]
    return HeadSet.of(pairs, grid)


def examples(model):
    """One intervention of each kind that goes on behind its texts."""
    heads = heads_of(model)
    return {
        "zero": AblateHeads(heads),
        "uniform": AblateHeads(heads, "uniform"),
        "self": AblateHeads(heads, "self"),
        "local": LocalHeads(heads, 3, 1),
        "edges": CutEdges(None, (0, 2), heads),
        "no sink": ScaleSinks(heads, 0.0),
        "key": ScaleSinks(heads, 1.5, on="key"),
        "temperature": Temperature(heads, 2.0),
        "taylor": deconstruct(model, "taylor", (0,)),
        "off": deconstruct(model, "off", (1,)),
        "cells": SetActivations(((1, 0, 3), (0, 2, 5)), 7.0),
        "factor": SetActivations(((1, 1, 3),), factor=-4.0),
        "steer": Steer(DIRECTION, 1, 3.0),
        "steer one": Steer(DIRECTION, 0, 3.0, (0,)),
        "both": AblateHeads(heads) + Steer(DIRECTION, 1),
    }


NAMES = list(examples(load()))


def logits(model, intervention, **inputs):
    with torch.no_grad(), intervention(model):
        return model.module(**inputs).logits


def ids_of(*rows):
    return torch.tensor(rows)


def close(got, wanted):
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)


def stream_under(model, *interventions):
    with reduce(add, interventions, Composed(()))(model):
        return record(model, TEXT, ("stream",))["residual"]["stream"].values


class TestCells:
    """Set, multiplied, and nothing else touched."""

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_only_the_cell_changes_in_its_layer_and_none_before(self, layer):
        model = load()
        plain = stream_under(model)
        changed = stream_under(model, SetActivations(((layer, 4, 9),), 5.0))
        assert (changed[:layer] == plain[:layer]).all()
        assert changed[layer, 4, 9] == 5.0
        apart = np.argwhere(changed[layer] != plain[layer]).tolist()
        assert apart == [[4, 9]]
        if layer < 2:
            assert (changed[layer + 1, :4] == plain[layer + 1, :4]).all()
            assert (changed[layer + 1, 4:] != plain[layer + 1, 4:]).any(-1).all()

    def test_each_cell_gets_its_value_or_the_factor(self):
        model = load()
        cells = ((1, 0, 3), (1, 2, 3), (2, 5, 7))
        plain = stream_under(model)
        changed = stream_under(model, SetActivations(cells, (1.0, 2.0, 3.0)))
        assert [float(changed[cell]) for cell in cells] == [1.0, 2.0, 3.0]
        scaled = stream_under(model, SetActivations(cells[:2], factor=-2.0))
        for cell in cells[:2]:
            assert float(scaled[cell]) == pytest.approx(-2 * float(plain[cell]))

    def test_means_are_those_of_the_texts(self):
        model = load()
        cells = ((0, 1, 2), (2, 3, 4))
        found = mean_activations(model, [TEXT, OTHER, TEXT[::-1]], cells)
        streams = [
            record(model, text, ("stream",))["residual"]["stream"].values
            for text in (TEXT, OTHER, TEXT[::-1])
        ]
        assert found == pytest.approx([np.mean([s[c] for s in streams]) for c in cells])

    def test_a_direction_is_added_to_the_named_tokens(self):
        model = load()
        plain = stream_under(model)
        steered = stream_under(model, Steer(DIRECTION, 1, -2.5, (0, 6)))
        step = np.zeros_like(plain[1])
        step[[0, 6]] = -2.5 * DIRECTION.numpy()
        np.testing.assert_allclose(steered[1], plain[1] + step, atol=1e-5)
        assert (steered[0] == plain[0]).all()
        everywhere = stream_under(model, Steer(DIRECTION, 2))
        wanted = plain[2] + DIRECTION.numpy()
        np.testing.assert_allclose(everywhere[2], wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_on_the_left_moves_nothing(family, name):
    model = load(family)
    intervention = examples(model)[name]
    mask = torch.tensor([[1] * 10, [0] * 3 + [1] * 7])
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    ids = ids_of(TEXT, [0] * 3 + OTHER[:7])
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": place}
    batch = logits(model, intervention, **inputs)
    close(batch[:1], logits(model, intervention, input_ids=ids_of(TEXT)))
    alone = logits(model, intervention, input_ids=ids_of(OTHER[:7]))
    close(batch[1:, 3:], alone)
    plain = logits(model, Composed(()), input_ids=ids_of(OTHER[:7]))
    assert (alone - plain).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("name", NAMES)
def test_generation_is_the_uncached_forward_step_by_step(family, name):
    model = load(family)
    intervention = examples(model)[name]
    options = {"do_sample": False, "eos_token_id": None, "output_logits": True}
    with intervention(model):
        made = model.module.generate(
            ids_of(TEXT), max_new_tokens=6, return_dict_in_generate=True, **options
        )
    ids = made.sequences[:, :-1]
    whole = logits(model, intervention, input_ids=ids)[:, 9:]
    for step, wanted in zip(made.logits, whole.unbind(1), strict=True):
        close(step, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_generates_what_each_text_does_alone(name):
    model = load()
    intervention = examples(model)[name]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    mask = torch.tensor([[1] * 10, [0] * 3 + [1] * 7])
    ids = ids_of(TEXT, [0] * 3 + OTHER[:7])
    with intervention(model):
        both = model.module.generate(ids, attention_mask=mask, **options)
        alone = [
            model.module.generate(ids_of(row), **options) for row in (TEXT, OTHER[:7])
        ]
    for sample, wanted in zip(both, alone, strict=True):
        assert torch.equal(sample[-5:], wanted[0, -5:])


@pytest.mark.parametrize("name", ["cells", "steer one"])
def test_decoded_tokens_are_left_alone(name):
    model = load()
    seen = []
    block = model.module.model.layers[0]
    intervention = examples(model)[name]
    with intervention(model):
        block.register_forward_hook(lambda _, given, made: seen.append(given[0]))
        model.module.generate(ids_of(TEXT), max_new_tokens=3, do_sample=False)
    first, *decoded = seen
    assert [given.shape[1] for given in seen] == [10, 1, 1]
    table = model.module.get_input_embeddings().weight
    assert all((table == given[0, 0]).all(-1).any() for given in decoded)
    assert not (table == first[0, 0 if name == "steer one" else 2]).all(-1).any()


class TestComposition:
    """Sums, nests, and what a trace says of them."""

    def test_the_parts_of_a_sum_come_one_after_the_other(self):
        model = load()
        double = SetActivations(((1, 3, 3),), factor=2.0)
        five = SetActivations(((1, 3, 3),), 5.0)
        assert stream_under(model, five, double)[1, 3, 3] == 10.0
        assert stream_under(model, double, five)[1, 3, 3] == 5.0
        total = five + double + five
        assert parts_of(total) == (five, double, five)
        assert str(total) == f"{five} + {double} + {five}"

    @pytest.mark.parametrize("first", ["edges", "local", "key", "steer"])
    @pytest.mark.parametrize("second", ["uniform", "taylor", "temperature", "cells"])
    def test_a_nest_is_the_sum(self, first, second):
        model = load()
        both = examples(model)
        outer, inner = both[first], both[second]
        inputs = {"input_ids": ids_of(TEXT)}
        with outer(model):
            nested = logits(model, inner, **inputs)
            assert in_force(model.module) == (outer,)
        assert in_force(model.module) == ()
        assert nested.isfinite().all()
        assert torch.equal(nested, logits(model, outer + inner, **inputs))
        assert not torch.equal(nested, logits(model, outer, **inputs))

    def test_only_an_intervention_can_be_added(self):
        with pytest.raises(TypeError):
            _ = Steer(DIRECTION, 1) + 1

    def test_a_trace_shows_the_edited_run_and_names_what_is_in_force(self):
        model = load()
        outer, inner = (examples(model)[name] for name in ("no sink", "steer"))
        plain = interp.trace(model, TEXT)
        with outer(model), inner(model):
            traced = interp.trace(model, TEXT)
        told = json.loads(traced.attrs["interventions"])
        assert told == [str(outer), str(inner)]
        assert json.loads(plain.attrs["interventions"]) == []
        first = traced["self"]["first_mass"].sel(layer=0)
        assert not first.sel(head=[0, 1])[:, 1:].any()
        assert first.sel(head=[2, 3]).all()
        norms = (t["residual"]["norm"].sel(layer=1).values for t in (traced, plain))
        assert not np.allclose(*norms)

    def test_names_tell_knobs_apart(self):
        names = [str(each) for each in examples(load()).values()]
        assert len(set(names)) == len(names)
        other = Steer(DIRECTION * 2, 1)
        assert str(other) != str(Steer(DIRECTION, 1))


def fail_behind(_outputs):
    raise ZeroDivisionError


@pytest.mark.parametrize("name", [*NAMES, "act"])
def test_the_model_is_as_before_also_after_a_failure(name, untouched):
    model = load()
    made = examples(model) | {"act": CalibrateSinks(heads_of(model), threshold=0.0)}
    intervention = made[name]
    before = model.module(ids_of(TEXT)).logits
    with untouched(model.module):
        with intervention(model):
            interp.trace(model, TEXT)
            model.module.generate(ids_of(TEXT), max_new_tokens=2, do_sample=False)
        with pytest.raises(ZeroDivisionError), intervention(model):
            fail_behind(model.module(ids_of(TEXT)))
        with pytest.raises(KeyboardInterrupt), intervention(model.module):
            raise KeyboardInterrupt
    assert in_force(model.module) == ()
    assert torch.equal(model.module(ids_of(TEXT)).logits, before)


@pytest.mark.parametrize("family", DECODERS)
class TestFamilies:
    def test_a_zeroed_head_is_a_zero_before_the_output_projection(self, family):
        module, inputs = tiny(family)
        model = interp.load(module)
        site = model.anatomy.at("self")[1]
        heads = HeadSet.of([(1, 2)], model.anatomy)
        with torch.no_grad(), AblateHeads(heads)(model):
            got = module(**inputs).logits
        owner = dict(module.named_modules())[site.module_name]
        parts = dict(owner.named_children())
        [projection] = [parts[name] for name in PROJECTIONS if name in parts]
        start = 2 * site.d_value

        def zero(_, given):
            given[0][..., start : start + site.d_value] = 0

        plain = module(**inputs).logits
        projection.register_forward_pre_hook(zero)
        with torch.no_grad():
            wanted = module(**inputs).logits
        close(got, wanted)
        assert (got - plain).abs().max() > 1e-3

    def test_a_slice_of_the_projection_s_output_is_no_head(self, family):
        module, inputs = tiny(family)
        model = interp.load(module)
        site = model.anatomy.at("self")[1]
        with torch.no_grad(), AblateHeads(HeadSet.of([(1, 2)], model.anatomy))(model):
            head = module(**inputs).logits
        owner = dict(module.named_modules())[site.module_name]
        parts = dict(owner.named_children())
        [projection] = [parts[name] for name in PROJECTIONS if name in parts]
        start = 2 * site.d_value

        def zero(_, given, output):
            output[..., start : start + site.d_value] = 0

        projection.register_forward_hook(zero)
        with torch.no_grad():
            sliced = module(**inputs).logits
        assert (head - sliced).abs().max() > 1e-3

    def test_a_patched_stream_gives_the_other_text_s_logits(self, family):
        model = load(family)
        source = record(model, [TEXT, OTHER], ("stream",))
        wanted = logits(model, Composed(()), input_ids=ids_of(TEXT, OTHER))
        for layer in range(3):
            patch = PatchStream(source, (layer,))
            close(logits(model, patch, input_ids=ids_of(OTHER, TEXT)), wanted)


@pytest.mark.parametrize(
    ("make_one", "said"),
    [
        (lambda: SetActivations(()), "no cell"),
        (lambda: SetActivations(((0, 0, 0),), (1.0, 2.0)), "2 values"),
        (lambda: SetActivations(((3, 0, 0),)), "0 .the embedding. to 2"),
        (lambda: SetActivations(((0, -1, 0),)), "count from 0"),
        (lambda: SetActivations(((0, 0, D_MODEL),)), "channels go to 31"),
        (lambda: Steer(DIRECTION, -1), "Layer -1"),
        (lambda: Steer(DIRECTION[:5], 1), r"shape \(32,\)"),
        (lambda: Steer(DIRECTION, 1, float("nan")), "finite scale"),
        (lambda: mean_activations(load(), [], ((0, 0, 0),)), "got none"),
        (lambda: mean_activations(load(), [TEXT], ((0, 10, 0),)), "Leave that"),
    ],
)
def test_what_the_model_has_not_is_refused(make_one, said):
    with pytest.raises(InputError, match=said):
        make_one()(load()).__enter__()
