import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr, spearmanr

from interp.probes.crossattn.measures import MEASURES, alike, rotated


def maps(seed=0, n_tokens=4, n=23):
    rng = np.random.default_rng(seed)
    return rng.random((2, 3, n_tokens, n)), rng.random((n_tokens, n))


def test_every_measure_is_what_scipy_gives_row_by_row():
    attention, saliency = maps()
    ours = alike(attention, saliency, top=0.2)

    for place in np.ndindex(2, 3, 4):
        row, of = attention[place], saliency[place[-1]]
        top = set(np.argsort(-row)[:5]), set(np.argsort(-of)[:5])
        wanted = [
            pearsonr(row, of)[0],
            spearmanr(row, of)[0],
            len(top[0] & top[1]) / 5,
            jensenshannon(row, of, base=2),
            abs(row.argmax() - of.argmax()),
        ]
        np.testing.assert_allclose(ours[(slice(None), *place)], wanted, atol=1e-12)


def test_the_mean_over_tokens_is_the_correlation_of_whole_maps_normalized_by_row():
    attention, saliency = maps()
    rows = attention[0, 0], saliency
    z = [(r - r.mean(1, keepdims=True)) / r.std(1, ddof=1, keepdims=True) for r in rows]
    whole = pearsonr(z[0].ravel(), z[1].ravel())[0]

    assert alike(rows[0], saliency)[0].mean() == pytest.approx(whole)


def test_a_map_agrees_with_itself_in_every_measure():
    _, saliency = maps()
    perfect = {"pearson": 1, "spearman": 1, "topk": 1, "js_distance": 0, "peak": 0}
    found = alike(3 * saliency, saliency)
    for name, row in zip(MEASURES, found, strict=True):
        np.testing.assert_allclose(row, perfect[name], atol=1e-7)


def test_a_constant_row_correlates_with_nothing_and_an_unknown_one_is_nan():
    attention, saliency = maps()
    attention[..., 0, :] = 0.25
    saliency[1] = np.nan
    found = alike(attention, saliency)

    assert (found[:2, ..., 0] == 0).all()
    assert np.isnan(found[..., 1]).all()
    assert np.isfinite(found[..., 2:]).all()


def test_what_is_not_visible_yet_does_not_count():
    attention, saliency = maps()
    hidden = saliency.copy()
    hidden[:, 9:] = np.nan
    attention[..., 9:] = 1e9

    wanted = alike(attention[..., :9], saliency[:, :9])
    np.testing.assert_array_equal(alike(attention, hidden), wanted)


def test_the_first_rotation_is_none_and_a_shifted_peak_moves_by_the_shift():
    attention, saliency = maps()
    found = rotated(attention[0, 0], saliency)
    np.testing.assert_allclose(found[:, :, 0], alike(attention[0, 0], saliency))

    spike = np.zeros((1, 10))
    spike[0, 3] = 1
    peaks = rotated(spike, spike)[MEASURES.index("peak"), 0]
    np.testing.assert_array_equal(peaks, [0, 1, 2, 3, 4, 5, 6, 3, 2, 1])
