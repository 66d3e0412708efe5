"""Interventions on attention weights, against dense definitions in float64."""

import pytest
import torch
from attention_cases import make
from tiny_models import tiny

import interp
from interp.anatomy import Site
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.calibration import CalibrateSinks
from interp.interventions.edges import CutEdges
from interp.interventions.sinks import ScaleSinks, Temperature
from interp.kernels import reference, weighted
from interp.kernels.definitions import Pattern

N = 40
SITE = Site("self", 1, "layers.1", 4, 2, 16, 16)
GRID = HeadGrid(3, 4, 2)
SOME = HeadSet.of([(1, 0), (1, 1), (2, 2), (2, 3)], GRID)
ON = [0, 1]
OFF = [2, 3]

CALLS = {
    "plain": {},
    "window": {"mask": "window"},
    "left padding": {"n_batch": 2, "padding": "left"},
    "right padding": {"n_batch": 2, "padding": "right"},
    "learned sinks": {"sinks": True},
    "softcap": {"softcap": 20.0},
}


def call_of(name):
    return make(N, dtype=torch.float64, **CALLS[name]).call


def logits_of(call):
    """Logits, what is visible, and each token's place in its own text, all dense."""
    visible = reference.visible(call).expand(call.n_batch, call.n_heads, -1, -1)
    place = torch.full((call.n_batch, call.mask.key_length), -1)
    for sample, _, keys in call.samples():
        place[sample, keys] = torch.arange(keys.stop - keys.start)
    return reference.scores(call), visible, place


def weights_of(call, logits, visible):
    hidden = logits.masked_fill(~visible, -torch.inf)
    norm = hidden.logsumexp(-1, keepdim=True)
    if call.score.sink_logits is not None:
        sink = call.score.sink_logits.to(norm)[:, None, None]
        norm = torch.logaddexp(norm, sink)
    return (hidden - norm).exp().nan_to_num(0.0)


def edited(call, intervention):
    call = intervention.inputs(SITE, call)
    edits = intervention.weights(SITE, call)
    output, _, arrays = weighted.attend(call, [Pattern()], edits)
    return intervention.output(SITE, call, output), arrays["pattern"].nan_to_num(0.0)


def same(got, wanted):
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", CALLS)
class TestDefinitions:
    def test_a_uniform_head_weighs_all_that_it_sees_alike(self, name):
        call = call_of(name)
        logits, visible, _ = logits_of(call)
        logits[:, ON] = 0.0
        p = weights_of(call, logits, visible)
        output, pattern = edited(call, AblateHeads(SOME, "uniform"))
        same(pattern, p)
        same(output, p @ call.value.repeat_interleave(2, 1))

    def test_a_self_head_gives_the_tokens_own_value(self, name):
        call = call_of(name)
        logits, visible, _ = logits_of(call)
        own = torch.eye(N, dtype=torch.bool)
        logits[:, ON] = logits[:, ON].masked_fill(~own, -torch.inf)
        output, pattern = edited(call, AblateHeads(SOME, "self"))
        same(pattern, weights_of(call, logits, visible))
        if name == "plain":
            same(output[:, ON], call.value[:, [0, 0]])

    def test_a_zeroed_head_gives_nothing_and_others_all_that_they_did(self, name):
        call = call_of(name)
        before = weighted.attend(call)[0]
        output, _ = edited(call, AblateHeads(SOME, "zero"))
        assert (output[:, ON] == 0).all()
        assert torch.equal(output[:, OFF], before[:, OFF])

    @pytest.mark.parametrize("factor", [0.0, 0.25, 3.0])
    def test_a_scaled_sink_has_its_weight_times_the_factor(self, name, factor):
        call = call_of(name)
        logits, visible, place = logits_of(call)
        p = weights_of(call, logits, visible)
        is_first = (place == 0)[:, None, None, :] & (p > 0)
        scaled = torch.where(is_first, p * factor, p)
        kept = scaled.sum(-1, keepdim=True)
        if call.score.sink_logits is not None:
            kept = kept + 1 - p.sum(-1, keepdim=True)
        scaled = torch.where((kept > 1e-12), scaled / kept, p).nan_to_num(0.0)
        only = (visible & ~is_first).any(-1, keepdim=True)
        if factor == 0:
            scaled = torch.where(only, scaled, p)
        wanted = p.clone()
        wanted[:, ON] = scaled[:, ON]
        _, pattern = edited(call, ScaleSinks(SOME, factor))
        same(pattern, wanted)

    def test_a_scaled_key_scales_its_logits(self, name):
        call = call_of(name)
        _, pattern = edited(call, ScaleSinks(SOME, 1.5, on="key"))
        _, visible, place = logits_of(call)
        key = call.key.clone()
        for sample in range(call.n_batch):
            key[sample, 0, place[sample] == 0] *= 1.5
        logits = reference.scores(
            type(call)(call.query, key, call.value, call.score, call.mask)
        )
        same(pattern, weights_of(call, logits, visible))

    def test_a_temperature_divides_the_logits(self, name):
        call = call_of(name)
        logits, visible, _ = logits_of(call)
        logits[:, ON] /= 1.7
        _, pattern = edited(call, Temperature(SOME, 1.7))
        same(pattern, weights_of(call, logits, visible))

    def test_cut_edges_are_shared_among_what_is_left(self, name):
        call = call_of(name)
        logits, visible, place = logits_of(call)
        rows, columns = range(5, 20), [0, 3, 7, 8]
        looking = torch.isin(place, torch.tensor(list(rows)))
        looked_at = torch.isin(place, torch.tensor(columns))
        cut = looking[:, None, :, None] & looked_at[:, None, None, :]
        left = (visible & ~cut).any(-1, keepdim=True)
        shown = visible & ~(cut & left)
        shown[:, OFF] = visible[:, OFF]
        _, pattern = edited(call, CutEdges(rows, columns, SOME))
        same(pattern, weights_of(call, logits, shown))

    def test_calibrated_sinks_give_to_the_other_keys_in_proportion(self, name):
        call = call_of(name)
        p = weights_of(call, *logits_of(call)[:2])
        act = CalibrateSinks(SOME, beta=0.4, threshold=0.06)
        sinks = act.sinks(call)
        assert sinks[:, ON].any()
        wanted = p.clone()
        for sample in range(call.n_batch):
            for head in ON:
                own = sinks[sample, head]
                for row in wanted[sample, head]:
                    freed, rest = 0.6 * row[own].sum(), row[~own].sum()
                    if rest > 0:
                        row[own] *= 0.4
                        row[~own] *= 1 + freed / rest
        _, pattern = edited(call, act)
        same(pattern, wanted)
        same(pattern.sum(-1), p.sum(-1))


def test_act_passes_over_the_first_token_and_not_over_the_first_sink():
    call = call_of("plain")
    act = CalibrateSinks(SOME, threshold=0.0)
    sinks = act.sinks(call)
    assert not sinks[..., 0].any()
    assert sinks[..., 1 : N - 8].all()
    assert not sinks[..., N - 6 :].any()


def test_one_decoded_row_is_not_calibrated():
    call = call_of("plain").rows(N - 1, N)
    assert not CalibrateSinks(SOME).weights(SITE, call)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_places_are_the_texts_own_when_left_padding_has_left_the_cache(family):
    model = interp.load(tiny(family)[0])
    prompt, n_new, pad = torch.tensor([[5, 9, 7, 30, 41]]), 9, 4
    padded = torch.cat([torch.zeros(1, pad, dtype=torch.long), prompt], 1)
    batch = torch.cat([padded, torch.arange(10, 19)[None]])
    mask = torch.ones_like(batch)
    mask[0, :pad] = 0
    options = {"max_new_tokens": n_new, "do_sample": False, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    cut = CutEdges(range(6, 14), range(4, 9))
    with torch.no_grad(), cut(model):
        alone = model.module.generate(prompt, **options)
        both = model.module.generate(batch, attention_mask=mask, **options)
    with torch.no_grad():
        plain = model.module.generate(prompt, **options)
    for step in range(n_new):
        one, two = alone.logits[step][0], both.logits[step][0]
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(alone.logits[4], plain.logits[4], atol=1e-3)


class TestRefusals:
    """Knobs that mean nothing are refused when the value is made."""

    @pytest.mark.parametrize(
        ("make_one", "said"),
        [
            (lambda: ScaleSinks(SOME, -1.0), "from 0 on"),
            (lambda: ScaleSinks(SOME, 2.0, on="value"), "weight or its key"),
            (
                lambda: ScaleSinks(HeadSet.of([(1, 0)], GRID), 2.0, on="key"),
                "as_kv_groups",
            ),
            (lambda: Temperature(SOME, 0.0), "above 0"),
            (lambda: CalibrateSinks(SOME, beta=1.5), r"\[0, 1\]"),
            (lambda: CutEdges([], [1]), "at least one"),
            (lambda: AblateHeads(SOME, "none"), "zero, mean"),
            (lambda: AblateHeads(SOME, "mean"), "head_means"),
        ],
    )
    def test_with_the_remedy(self, make_one, said):
        with pytest.raises(InputError, match=said):
            make_one()

    def test_heads_of_another_model(self):
        model = tiny("llama")[0]
        with pytest.raises(InputError, match="this llama model"):
            AblateHeads(SOME)(model).__enter__()

    def test_no_head(self):
        model = tiny("llama")[0]
        heads = interp.HeadSet.of([], interp.Anatomy.of(model))
        with pytest.raises(InputError, match="empty"):
            AblateHeads(heads)(model).__enter__()
