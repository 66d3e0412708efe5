"""The page of attention against saliency, and its figures, on trees made by hand."""

import base64
import io
import json
import re
import wave
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hand_crossattn import METHODS, PUBLISHED, hand_crossattn

from interp.errors import InputError
from interp.viz.audio import player
from interp.viz.crossattn import findings, page
from interp.viz.crossattn_curves import agreement_plot, curve_plot
from interp.viz.crossattn_figures import aligned, token_by_token
from interp.viz.crossattn_tables import agreement_rows, measures
from interp.viz.numbers import percent

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt;</script><!--",
    "\u202eright to left\x00",
    "a" * 10_000,
)


def utterance(tree):
    return tree["utterance_0"].to_dataset()


@pytest.mark.parametrize("kind", ["speech", "text", "decoder"])
def test_the_page_of_each_kind_of_model_is_whole_and_allows_what_it_holds(kind):
    html = page(hand_crossattn(kind, n=2))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "media-src data:" in policy[1]
    assert html.count("<audio") == (2 if kind == "speech" else 0)
    assert html.count("data-plays=") == (4 if kind == "speech" else 0)
    for name in ("findings", "utterance_0", "utterance_1", "agreement", "heads"):
        assert f'id="{name}"' in html
    assert "<b>w1</b>" not in html
    assert "://" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    book = json.loads(
        re.search(r'id="book">(.*?)</script>', html, re.DOTALL)[1]  # type: ignore[index]
    )
    assert len(book["figures"]) == {"speech": 11, "text": 9, "decoder": 8}[kind]


def test_hostile_tokens_are_text_everywhere():
    html = page(hand_crossattn("speech", HOSTILE))
    body = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "<img src=x" not in html
    assert "alert(1)</script>" not in body
    assert "\u202e" not in body
    assert "\x00" not in html
    assert "a" * 2000 not in html


def test_the_sound_is_what_was_recorded():
    samples = np.array([0.0, 0.5, -1.0, 3.0, np.nan], dtype=np.float32)
    html = str(player(samples, 8000, "sound", 'a "recording"'))
    data = re.search(r"base64,([^\"]*)", html)
    assert data
    with wave.open(io.BytesIO(base64.b64decode(data[1]))) as file:
        assert (file.getframerate(), file.getnchannels()) == (8000, 1)
        found = np.frombuffer(file.readframes(9), "<i2")
    assert found.tolist() == [0, 16383, -32767, 32767, 0]
    assert "&#34;recording&#34;" in html


def test_attention_and_saliency_stand_on_the_axis_of_the_sound():
    node = utterance(hand_crossattn())
    figure: Any = aligned(node, "perturbation")
    sound, spectrogram, attention, saliency = figure.data
    assert max(sound.y) == pytest.approx(float(node["waveform"].max()))
    assert min(sound.y) == pytest.approx(float(node["waveform"].min()))
    assert spectrogram.z.shape == (8, 20)
    assert attention.x.tolist() == pytest.approx([0.05 + i / 10 for i in range(10)])
    assert saliency.x.tolist() == attention.x.tolist()
    rows = node["saliency"].sel(space="input", attribution="perturbation").values
    wanted = rows - rows.min(-1, keepdims=True)
    wanted /= wanted.max(-1, keepdims=True)
    np.testing.assert_allclose(saliency.z, wanted, rtol=1e-6)
    assert {axis.matches for axis in figure.select_xaxes()} <= {None, "x4"}
    assert figure.layout.xaxis4.title.text == "seconds"


def test_a_text_is_read_along_its_tokens():
    node = utterance(hand_crossattn("text"))
    figure: Any = aligned(node, "gradient", "states")
    assert len(figure.data) == 2
    assert figure.layout.xaxis2.ticktext[0] == "&lt;b&gt;w0&lt;/b&gt;"


def test_the_slider_shows_one_token_at_a_time():
    node = utterance(hand_crossattn(words=("a", "b", "c")))
    figure: Any = token_by_token(node, "perturbation")
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["a", "b", "c"]
    for token, step in enumerate(steps):
        shown = [figure.data[i] for i, is_ in enumerate(step.args[0]["visible"]) if is_]
        assert [each.type for each in shown] == ["heatmap", "scatter", "scatter"]
        whole = node["saliency_map"].sel(attribution="perturbation").values[token]
        np.testing.assert_allclose(shown[0].z, whole.T, rtol=1e-6)
        row = node["aggregate"].values[token]
        wanted = (row - row.min()) / (row.max() - row.min())
        np.testing.assert_allclose(shown[1].y, wanted, rtol=1e-5)
        np.testing.assert_allclose(shown[1].customdata, row, rtol=1e-6)
        assert shown[0].zmin == pytest.approx(-abs(whole).max(), rel=1e-5)
        assert shown[0].zmax == pytest.approx(abs(whole).max(), rel=1e-5)
    assert [each.visible for each in figure.data[:4]] == [True, True, True, False]


def test_colors_of_magnitudes_begin_at_the_smallest():
    node = utterance(hand_crossattn())
    node["saliency_map"] = abs(node["saliency_map"]) + 5
    cells: Any = token_by_token(node, "gradient").data[0]
    whole = node["saliency_map"].values[0, 0]
    assert (cells.zmin, cells.zmax) == pytest.approx((whole.min(), whole.max()))


def test_a_map_too_large_for_a_page_is_thinned(monkeypatch):
    from interp.viz import crossattn_figures

    monkeypatch.setattr(crossattn_figures, "CELLS", 2 * 20 * 8 // 4)
    node = utterance(hand_crossattn())
    cells: Any = token_by_token(node, "gradient").data[0]
    assert cells.z.shape == (4, 10)
    assert cells.y.tolist() == [0.5, 2.5, 4.5, 6.5]
    np.testing.assert_allclose(cells.x[:2], [0.025, 0.125])
    whole = node["saliency_map"].values[0, 0]
    assert cells.z[0, 0] == pytest.approx(whole[:2, :2].mean(), rel=1e-5)


def test_agreement_stands_beside_chance_and_what_is_published():
    agreement = hand_crossattn()["agreement"].to_dataset()
    figure: Any = agreement_plot(agreement, PUBLISHED)
    dots = figure.data[-1]
    values = agreement["overall"].sel(measure="pearson")
    assert dots.x[0] == values[0, 0].item()
    assert len(dots.x) == 4
    np.testing.assert_allclose(dots.error_x.array, 0.1)
    published = next(each for each in figure.data if each.name == "published range")
    assert (published.base[0], published.base[0] + published.x[0]) == (0.49, 0.63)


def test_curves_are_means_over_the_tokens_of_all_utterances():
    tree = hand_crossattn(n=2)
    curves = [tree[f"utterance_{i}"]["curves"].to_dataset() for i in range(2)]
    figure: Any = curve_plot(curves, "deletion")
    wanted = np.mean([each["curve"].values[0, 0] for each in curves], (0, 1))
    np.testing.assert_allclose(figure.data[0].y, wanted)
    assert figure.data[-1].name == "random"
    hidden = [each.name for each in figure.data if each.visible == "legendonly"]
    assert hidden == ["perturbation, states"]


def test_curves_of_as_many_explanations_as_there_are_look_different():
    names = [f"method {n}" for n in range(18)]
    curve = hand_crossattn()["utterance_0"]["curves"].to_dataset()["curve"]
    many = xr.concat([curve.isel(explanation=0, drop=True)] * 18, "explanation")
    many = many.assign_coords(explanation=np.array(names, dtype=object))
    figure: Any = curve_plot([many.to_dataset(name="curve")], "insertion")
    looks = {(line.line.color, line.line.dash) for line in figure.data}
    assert len(looks) == 18


def test_the_table_has_every_saliency_with_interval_and_chance():
    agreement = hand_crossattn()["agreement"].to_dataset()
    table = list(agreement_rows(agreement))
    assert len(table) == 2 * len(METHODS)
    assert table[1]["name"] == "gradient, encoder outputs"
    value = agreement["overall"].values[0, 0, 0]
    assert table[0]["cells"][0]["value"] == f"{value:.2f}"
    assert table[0]["cells"][0]["interval"] == f"{value - 0.1:.2f} to {value + 0.1:.2f}"
    assert {unit for _, _, unit in measures(agreement)} == {"", "ms"}


def test_what_is_no_comparison_is_refused():
    with pytest.raises(InputError, match=r"crossattn\.compare"):
        page(xr.DataTree())
    with pytest.raises(InputError, match="as a Dataset"):
        aligned(xr.DataArray(), "gradient")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gradient, perturbation of input, states"):
        aligned(utterance(hand_crossattn()), "occlusion")


@pytest.mark.parametrize(
    ("free", "says"), [(0.52, "0.61"), (0.7, "0.61"), (np.nan, "--masks")]
)
def test_a_perturbation_is_judged_without_the_noise_of_its_masks(free, says):
    tree = hand_crossattn("speech", n=1)
    tree.attrs["published"] = json.dumps(PUBLISHED)
    agreement = tree["agreement"].to_dataset()
    spaces = agreement.sizes["space"]
    agreement["ceiling"] = ("space", [0.61] * spaces)
    agreement["without_noise"] = ("space", [free] * spaces)
    bounds = [[0.4, 0.8]] * spaces
    agreement["without_noise_interval"] = (("space", "bound"), bounds)
    tree["agreement"] = xr.DataTree(agreement)
    observed, freed, *_ = findings(tree)

    assert says in freed.sentence
    assert "published" not in observed.sentence
    if np.isfinite(free):
        low, high = PUBLISHED[0]["low"], PUBLISHED[0]["high"]
        where = "within" if low <= free <= high else "outside"
        assert f"ours lies {where} it" in freed.sentence


def test_integrated_gradients_that_miss_their_sum_are_said_to():
    tree = hand_crossattn("speech", n=1)
    node = tree["utterance_0"].to_dataset()
    for miss, is_said in ((0.05, False), (0.6, True)):
        node["completeness_error"] = miss * abs(node["completeness_gap"])
        tree["utterance_0"] = xr.DataTree(node)
        said = [each for each in findings(tree) if "--steps" in each.sentence]
        assert bool(said) == is_said
        assert not is_said or percent(0.6) in said[0].headline


@pytest.mark.parametrize(
    ("mixed", "says"), [(0.08, "0.08 more"), (-0.02, "no more than with that")]
)
def test_mixing_is_told_without_the_masks_noise(mixed, says):
    tree = hand_crossattn("speech", n=1)
    agreement = tree["agreement"].to_dataset()
    agreement["without_noise"] = ("space", [0.5, 0.5 + mixed])
    agreement["ceiling"] = ("space", [0.6, 0.6])
    agreement["without_noise_interval"] = (("space", "bound"), [[0.4, 0.6]] * 2)
    agreement["mixing_without_noise"] = mixed
    tree["agreement"] = xr.DataTree(agreement)
    assert any(says in each.sentence for each in findings(tree))
