import numpy as np
import pytest
import torch
import xarray as xr
from crossattn_cases import heard, tiny_case

from interp.probes.crossattn import Options
from interp.probes.crossattn.agreement import rotations, summary, token_values
from interp.probes.crossattn.clusters import stretches, superpixels
from interp.probes.crossattn.parts import Parts
from interp.probes.crossattn.perturbation import Sums, perturb
from interp.probes.crossattn.saliency import saliency


def agreement_of(attention, halves):
    """The summary of one utterance with one head and saliency in two halves."""
    dims = ("token", "position")
    maps = attention[None, None]
    node = xr.Dataset(
        {
            "attention": (("layer", "head", *dims), maps),
            "aggregate": (dims, attention),
            "baselines": (("baseline", *dims), attention[None]),
            "saliency": (("space", "attribution", *dims), halves.mean(0)[None, None]),
            "saliency_halves": (("space", "half", *dims), halves[None]),
        },
        {
            "space": ["input"],
            "attribution": ["perturbation"],
            "baseline": ["attention"],
            "token": range(len(attention)),
        },
    )
    values, turned = token_values(node), rotations(node)
    return summary([values], [turned], unit=1.0, unit_name="tokens")


def toy(n_masks, seed=0, sums=None):
    """Four cells, of which only the second moves the one output token."""

    def log_probabilities(rows):
        logits = torch.stack([2 * rows[:, 1], torch.zeros(len(rows))], -1)
        return logits.log_softmax(-1)[:, None]

    values, baseline = torch.ones(1, 4), torch.zeros(1, 4)
    clusters = [np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])]
    expand = torch.from_numpy
    options = {"seed": seed, "sums": sums}
    found = perturb(
        log_probabilities, values, baseline, clusters, expand, n_masks, **options
    )
    return found.saliency(clusters)


def test_the_cell_that_matters_has_the_divergence_of_its_absence():
    mean, error = toy(400)
    p = 1 / (1 + np.exp(-2.0))
    wanted = p * np.log(p / 0.5) + (1 - p) * np.log((1 - p) / 0.5)

    assert mean[0, 1] == pytest.approx(wanted)  # whenever it is masked, and only then
    assert error[0, 1] == pytest.approx(0, abs=1e-6)
    assert mean[0].argmax() == 1
    for cell in (2, 3):  # masked together with the second by chance
        assert abs(mean[0, cell] - wanted / 2) < 4 * error[0, cell]


def test_the_standard_error_falls_as_one_over_the_root_of_the_masks():
    few, many = toy(100)[1], toy(6400)[1]
    np.testing.assert_allclose(few[0, 2:] / many[0, 2:], 8, rtol=0.2)


def test_the_spread_over_seeds_is_the_standard_error():
    runs = [toy(200, seed) for seed in range(40)]
    spread = np.std([mean for mean, _ in runs], axis=0, ddof=1)[0, 2:]
    said = np.mean([error for _, error in runs], axis=0)[0, 2:]
    np.testing.assert_allclose(spread, said, rtol=0.4)


def test_cells_that_were_never_masked_have_no_saliency_and_no_known_error():
    clusters = [np.array([0, 1])]
    mean, error = Sums.empty(clusters, 3).saliency(clusters)
    assert (mean == 0).all()
    assert np.isnan(error).all()


@pytest.mark.parametrize("space", ["input", "states"])
def test_a_perturbation_is_repeated_by_its_seed_and_gone_on_with(tmp_path, space):
    forced = heard()
    options = Options(masks=30, cheap_masks=30, segments=(400, 800))
    once = saliency(forced, space, "perturbation", options)
    parts = Parts(tmp_path)
    fewer = Options(masks=7, cheap_masks=7, segments=(400, 800))
    part = saliency(forced, space, "perturbation", fewer, parts)
    told = []
    again = saliency(
        forced,
        space,
        "perturbation",
        options,
        parts,
        lambda step, done, total: told.append((done, total)),
    )
    for name in once:
        np.testing.assert_array_equal(again[name], once[name])
    assert told[0] == (8, 30)
    assert not np.array_equal(part["positions"], once["positions"])
    fresh = Options(masks=7, cheap_masks=7, segments=(400, 800), seed=1)
    other = saliency(forced, space, "perturbation", fresh)
    assert not np.array_equal(part["positions"], other["positions"])


def test_ablation_of_a_token_is_the_log_probability_that_it_costs():
    forced = tiny_case("bart")
    found = saliency(forced, "input", "ablation", Options())["positions"]
    values, scores = forced.of("input")
    with torch.no_grad():
        for position in range(forced.n_positions):
            without = values.clone()
            without[:, position] = 0
            cost = (scores(values) - scores(without))[0].abs().numpy()
            np.testing.assert_allclose(found[:, position], cost, atol=1e-5)


def test_superpixels_fill_the_picture_with_about_as_many_clusters():
    rng = np.random.default_rng(0)
    features = rng.random((100, 40))
    few, many = superpixels(features, (200, 1000))
    assert few.shape == features.shape
    assert set(np.unique(few)) == set(range(few.max() + 1))
    assert 25 <= few.max() + 1 <= 55
    assert 130 <= many.max() + 1 <= 270


def test_superpixels_follow_an_edge():
    features = np.zeros((60, 40))
    features[:, 17:] = 1
    [labels] = superpixels(features, (400,))
    crossing = [len(np.unique(features[labels == n])) > 1 for n in np.unique(labels)]
    assert np.mean(crossing) < 0.2


def test_stretches_are_runs_of_neighbors():
    assert [s.tolist() for s in stretches(5, [1, 2])] == [
        [0, 1, 2, 3, 4],
        [0, 0, 1, 1, 2],
    ]


def test_two_halves_are_runs_of_their_own_and_make_the_whole():
    clusters = [np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])]
    values, baseline = torch.ones(1, 4), torch.zeros(1, 4)

    def log_probabilities(rows):
        logits = torch.stack([rows @ torch.arange(4.0), torch.zeros(len(rows))], -1)
        return logits.log_softmax(-1)[:, None]

    sums = perturb(log_probabilities, values, baseline, clusters, torch.from_numpy, 400)
    counts = np.stack(
        [
            sum(c[half][own] for c, own in zip(sums.count, clusters, strict=True))
            for half in (0, 1)
        ]
    )
    halves = sums.halves(clusters)

    assert halves.shape == (2, 1, 4)
    assert abs(np.subtract(*counts)).max() < 60
    together = (halves * counts[:, None]).sum(0) / counts.sum(0)
    np.testing.assert_allclose(together, sums.saliency(clusters)[0])


def test_without_noise_few_masks_say_what_many_do():
    """Saliency is known here: attention plus noise that falls with the masks."""
    rng = np.random.default_rng(0)
    n_tokens, n = 40, 400
    truth = rng.gamma(1, size=(n_tokens, n))
    attention = truth + rng.gamma(1, size=truth.shape)
    wanted = np.mean(
        [np.corrcoef(a, b)[0, 1] for a, b in zip(attention, truth, strict=True)]
    )
    for noise in (0.5, 1.0, 2.0):
        halves = truth + noise * np.sqrt(2) * rng.standard_normal((2, n_tokens, n))
        found = agreement_of(attention, halves)
        low, high = found["without_noise_interval"].values[0]
        seen = found["overall"].sel(measure="pearson").item()

        assert seen < wanted - 0.03
        assert seen == pytest.approx(wanted * found["ceiling"].item(), abs=0.03)
        assert low < wanted < high


def test_halves_with_nothing_in_common_free_nothing():
    rng = np.random.default_rng(3)
    half = rng.standard_normal((1, 6, 50))
    found = agreement_of(rng.gamma(1, size=(6, 50)), np.concatenate([half, -half]))
    for name in ("ceiling", "without_noise", "without_noise_interval"):
        assert found[name].isnull().all()
