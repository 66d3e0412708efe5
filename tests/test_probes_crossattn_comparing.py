from importlib import import_module

import numpy as np
import pytest
import torch
import xarray as xr
from crossattn_cases import (
    READ,
    SECONDS,
    WRITTEN,
    heard,
    listener,
    marian,
    moonshine,
    sound,
    speecht5,
    tiny_case,
)
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.probes.crossattn import METHODS, Options, compare, utterances
from interp.probes.crossattn.attention import Maps
from interp.probes.crossattn.faithfulness import curves
from interp.probes.crossattn.forced import Forced
from interp.probes.crossattn.parts import Parts

FEW = Options(steps=2, samples=2, windows=5, masks=6, cheap=2, cheap_masks=6)
CHEAP = ("gradient", "perturbation")
writing = import_module("interp.probes.crossattn.utterances")


@pytest.fixture(scope="module")
def speech():
    return compare(listener(), sound(0.7, 1), text=[WRITTEN] * 2, options=FEW)


def test_every_method_is_there_in_both_spaces_with_its_errors(speech):
    node = speech["utterance_0"].to_dataset()
    assert node["attribution"].values.tolist() == list(METHODS)
    assert node["saliency"].dims == ("space", "attribution", "token", "position")
    assert node["saliency"].notnull().all()
    assert (node["saliency"] >= 0).all()
    of = ("attribution", "token", "frame", "channel")
    assert node["saliency_map"].dims == of
    assert node["attention"].dims == ("layer", "head", "token", "position")
    for name in ("completeness_error", "monte_carlo_error", "completeness_gap"):
        assert node[name].notnull().all(), name
    for name, array in node.data_vars.items():
        assert array.attrs.get("long_name"), name
        assert "units" in array.attrs, name


def test_a_long_recording_comes_as_several_utterances_without_their_padding(speech):
    names = [name for name in speech.children if name.startswith("utterance_")]
    begins = [speech[name].attrs["begin"] for name in names]
    assert begins == [0.0, 0.4]
    last = speech["utterance_1"].to_dataset()
    assert last.sizes["frame"] == 30
    assert last.sizes["position"] == 15
    assert last.attrs["position_ms"] == pytest.approx(20)


def test_the_map_pooled_by_maximum_is_the_saliency_of_positions(speech):
    node = speech["utterance_0"].to_dataset()
    whole = abs(node["saliency_map"]).max("channel").values
    pooled = whole.reshape(*whole.shape[:2], -1, 2).max(-1)
    own = node["saliency"].sel(space="input").values
    np.testing.assert_allclose(own, pooled, rtol=1e-6)


def test_agreement_is_the_mean_over_utterances_of_means_over_tokens(speech):
    means = [
        speech[f"utterance_{n}"]["token_agreement"].mean("token") for n in range(2)
    ]
    found = speech["agreement"].to_dataset()
    wanted = sum(means) / 2
    np.testing.assert_allclose(found["overall"], wanted)
    low, high = (found["overall_interval"].sel(bound=b) for b in ("low", "high"))
    assert (low.sel(over="tokens") <= found["overall"]).all()
    assert (high.sel(over="utterances") >= found["overall"]).all()
    p = found["overall_p"]
    assert ((p > 0) & (p <= 1)).all()
    mixing = found["coverage"] - found["overall"].sel(space="input", measure="pearson")
    np.testing.assert_allclose(found["context_mixing"], mixing)


def test_one_head_chosen_is_that_heads_row_of_the_agreement():
    model = listener()
    heads = interp.HeadSet.parse("L1.H2", model.anatomy)
    options = {"text": WRITTEN, "methods": CHEAP, "options": FEW}
    found = compare(model, sound(), heads=heads, faithfulness=False, **options)
    node = found["agreement"].to_dataset()
    own = node["by_head"].sel(layer=1, head=2)
    np.testing.assert_allclose(node["overall"], own)


@pytest.mark.parametrize("make", [marian, moonshine, speecht5])
def test_other_families_are_compared_too(make):
    model = make()
    given = READ if make is marian else sound()
    found = compare(model, given, text=WRITTEN, methods=CHEAP, options=FEW)
    node = found["utterance_0"].to_dataset()
    assert node["saliency"].notnull().all()
    assert found.attrs["skipped"] == "[]"
    assert found["agreement"]["overall"].notnull().all()


def test_a_decoder_alone_says_nothing_of_what_it_does_not_see_yet():
    model = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    found = compare(model, READ, methods=CHEAP, options=FEW)
    node = found["utterance_0"].to_dataset()
    seen = node["position"] <= node["token"]
    for name in ("attention", "saliency"):
        known = (
            node[name]
            .notnull()
            .any(
                [
                    d
                    for d in node[name].dims
                    if d in ("layer", "head", "space", "attribution")
                ]
            )
        )
        np.testing.assert_array_equal(known, seen.transpose(*known.dims))
    total = node["attention"].sum("position")
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert node["space"].values.tolist() == ["input"]


@pytest.mark.parametrize("family", ["bart", "llama"])
def test_attention_times_gradient_is_what_a_change_of_the_weight_would_do(family):
    """Of one head, by autograd on eager weights that are leaves of the graph."""
    forced = tiny_case(family, torch.float64)
    maps = Maps(forced)
    forced.module.set_attn_implementation("eager")
    kept = []
    module = {"bart": "bart", "llama": "llama"}[family]
    home = __import__(f"transformers.models.{module}.modeling_{module}", fromlist="x")
    eager = home.eager_attention_forward

    def watched(owner, query, key, value, mask, **options):
        output, weights = eager(owner, query, key, value, mask, **options)
        groups = query.shape[1] // value.shape[1]
        values = value.repeat_interleave(groups, 1)
        leaf = weights.detach().requires_grad_()
        again = (leaf @ values.detach()).transpose(1, 2)
        kept.append((forced_site(owner), leaf))
        # The leaf's gradient is the weight's; the graph goes on through the output.
        return output + again - again.detach(), weights

    def forced_site(owner):
        names = {id(p): n for n, p in forced.module.named_modules()}
        sites = {s.module_name: s for s in forced.model.anatomy.sites}
        return sites[names[id(owner)]]

    home.eager_attention_forward = watched
    try:
        score = forced.scores(forced.states.clone().requires_grad_())[0, 2]
        own = [leaf for site, leaf in kept if site.name == maps.site]
        slopes = torch.autograd.grad(score, own)
    finally:
        home.eager_attention_forward = eager
    row, n = int(forced.rows[2]), forced.n_positions
    wanted = sum(
        (leaf.detach() * slope)[0, :, row, :n].clamp(min=0).sum(0)
        for leaf, slope in zip(own, slopes, strict=True)
    ) / (len(own) * own[0].shape[1])
    ours = maps.times_gradient()[2]
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-4, atol=1e-9)


def test_rollout_shares_out_what_cross_attention_takes():
    forced = tiny_case("bart")
    rollout = Maps(forced).rollout()
    assert (rollout >= 0).all()
    # Each of two layers halves what is the decoder's own.
    np.testing.assert_allclose(rollout.sum(1), 1 - 0.5**2, rtol=1e-5)


def test_curves_begin_and_end_where_everything_and_nothing_is_left():
    forced = heard()
    rng = np.random.default_rng(0)
    maps = rng.random((len(forced.targets), forced.n_positions))
    found = curves(forced, {"a": maps}, levels=(0.5,))
    values, scores = forced.of("input")
    with torch.no_grad():
        whole = scores(values).exp().mean().item()
        nothing = scores(forced.baseline("input")).exp().mean().item()
    pooled = found["curve_pooled"].sel(explanation="a")
    for direction, ends in (
        ("deletion", (whole, nothing)),
        ("insertion", (nothing, whole)),
    ):
        row = pooled.sel(direction=direction).values
        np.testing.assert_allclose(row[[0, -1]], ends, rtol=1e-5)
    own = found["curve"].sel(explanation="a", direction="deletion")
    trimmed = forced.states[:, : forced.n_positions]
    with torch.no_grad():
        np.testing.assert_allclose(
            own.isel(fraction=0), forced.scores(trimmed)[0].exp(), rtol=1e-5
        )
    flat = found["auc_pooled"].sel(explanation="a", direction="deletion")
    area = np.trapezoid(pooled.sel(direction="deletion"), [0, 0.5, 1])
    assert float(flat) == pytest.approx(area)


def test_curves_that_are_kept_are_not_made_again(tmp_path, monkeypatch):
    forced, parts = heard(), Parts(tmp_path)
    rng = np.random.default_rng(1)
    maps = {
        name: rng.random((len(forced.targets), forced.n_positions)) for name in "ab"
    }
    told, runs = [], []
    own = forced.scores
    monkeypatch.setattr(forced, "scores", lambda rows: runs.append(0) or own(rows))

    def made(which):
        runs.clear()
        given = {name: maps[name] for name in which}
        return curves(
            forced, given, parts=parts, progress=lambda done, _: told.append(done)
        )

    first = made("ab")
    assert told == sorted(told)
    assert told[-1] == 2 * 2 * 4 * 4
    xr.testing.assert_identical(made("ab"), first)
    assert len(runs) == 2
    alone = made("b")
    assert len(runs) == 2
    for name in ("curve", "curve_pooled", "auc"):
        xr.testing.assert_identical(
            alone[name], first[name].sel(explanation=["b", "random"])
        )


def test_an_interrupted_comparison_goes_on(tmp_path, untouched):
    model = listener()
    options = {"text": WRITTEN, "methods": CHEAP, "options": FEW, "out": tmp_path}

    def stop(step, done, total):
        if step.startswith("perturbation") and done == 3:
            raise KeyboardInterrupt

    with untouched(model.module):
        with pytest.raises(KeyboardInterrupt):
            compare(model, sound(), progress=stop, **options)
        kept = {path.name for path in tmp_path.rglob("token_*.npz")}
        assert kept == {f"token_{n}.npz" for n in range(4)}
        resumed = compare(model, sound(), **options)
    whole = compare(model, sound(), **{**options, "out": None})
    for name in ("saliency", "saliency_map", "monte_carlo_error"):
        np.testing.assert_array_equal(
            resumed["utterance_0"][name], whole["utterance_0"][name]
        )


def test_what_cannot_be_compared_is_refused_with_its_cause():
    model = listener()
    with pytest.raises(InputError, match="integrated_gradients"):
        compare(model, sound(), methods=["integrated"])
    with pytest.raises(InputError, match="Nothing was given"):
        list(utterances(model, []))
    with pytest.raises(InputError, match="1 texts were given"):
        list(utterances(model, [sound(), sound()], text=["w4"]))
    with pytest.raises(InputError, match="No token is written"):
        list(utterances(model, sound(), text=""))
    with pytest.raises(UnsupportedModelError, match="writes none"):
        list(utterances(interp.load(tiny("bert")[0]), "w4"))
    with pytest.raises(InputError, match="silence"):
        Options(pool="most")
    with pytest.raises(InputError, match="at least 1"):
        Options(steps=0)


def test_what_a_model_writes_itself_is_scored_without_prompt_and_end():
    model = listener()
    [one] = utterances(model, sound(), max_tokens=5)
    forced = Forced(model, one)
    assert 1 <= len(one.scored) <= 5
    assert one.scored[0] == 1
    assert not {0, 1, 2} & set(forced.targets.tolist())


def test_a_window_without_words_is_left_out_and_named(monkeypatch):
    model, left_out = listener(), []
    quiet = [[], [1, 4, 9], []]  # what the model writes of each window
    monkeypatch.setattr(writing, "_written", lambda *_: quiet.pop(0))
    heard = list(utterances(model, sound(3 * SECONDS), silent=left_out.append))

    assert [one.window.begin for one in heard] == [pytest.approx(SECONDS)]
    assert left_out == ["tone from 0 s", f"tone from {2 * SECONDS:g} s"]


def test_a_recording_without_any_words_is_refused(monkeypatch):
    monkeypatch.setattr(writing, "_written", lambda *_: [])
    with pytest.raises(InputError, match="No token is written"):
        list(utterances(listener(), sound(2 * SECONDS)))


@pytest.mark.parametrize("family", ["whisper", "bart", "t5"])
def test_picked_keys_and_values_are_those_of_mixed_states(family):
    forced = tiny_case(family)
    base = forced.baseline("states")[:, : forced.n_positions]
    states = forced.states[:, : forced.n_positions]
    rows = torch.arange(len(forced.targets))
    gone = torch.rand(len(rows), forced.n_positions) > 0.5
    with torch.no_grad():
        found = forced.own_scores(base)(gone)
        mixed = torch.where(gone[..., None], base, states)
        wanted, whole = (
            forced.log_probabilities(each)[rows, rows, forced.targets]
            for each in (mixed, states.expand(len(rows), -1, -1))
        )
    torch.testing.assert_close(found, wanted)
    assert (found - whole).abs().max() > 1e-4
