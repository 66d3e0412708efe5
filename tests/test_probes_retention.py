"""Which keys stay, and how much of later attention they hold."""

from functools import cache

import hand_traces as hand
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from test_families import run
from tiny_models import tiny
from tolerance import assert_as_precise

import interp
from interp.capture import Capture
from interp.errors import InputError, NotCapturedError
from interp.kernels.definitions import Received, ReceivedLate
from interp.probes.expected_attention import ExpectedAttention
from interp.probes.importance import token_importance
from interp.probes.retention import (
    heavy_hitters,
    kept_keys,
    later_attention,
    rank_correlation,
    recall_of_mass,
)
from interp.tasks.reading import shipped

NONE = np.nan


def over_keys(*values, **coords):
    return xr.DataArray(
        np.array(values, dtype=float),
        dims=("head", "key"),
        coords={"key": np.arange(len(values[0]))},
    ).assign_coords(coords)


def places(kept):
    return [np.flatnonzero(row).tolist() for row in kept.values]


def test_the_highest_scores_stay_and_of_equal_ones_the_first():
    scores = over_keys([1, 3, 2, 3, 0], [5, 5, 5, 5, 5])

    assert places(kept_keys(scores, 2)) == [[1, 3], [0, 1]]
    assert places(kept_keys(scores, 3)) == [[1, 2, 3], [0, 1, 2]]


def test_first_and_recent_keys_stay_whatever_their_score():
    scores = over_keys([0, 1, 9, 5, 7, 0], [NONE, 1, 2, 3, 4, NONE])

    assert places(kept_keys(scores, 3, first=1, recent=1)) == [[0, 2, 5], [0, 4, 5]]


def test_a_key_without_a_score_goes_first():
    scores = over_keys([NONE, 0, NONE, 2, 1])

    assert places(kept_keys(scores, 3)) == [[1, 3, 4]]
    assert places(kept_keys(scores, 4)) == [[0, 1, 3, 4]]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    *[st.integers(0, 3)] * 3,
)
def test_as_many_keys_stay_as_there_is_room_for(values, room, first, recent):
    budget = room + first + recent
    kept = kept_keys(over_keys(values), budget, first=first, recent=recent)[0].values

    assert kept.sum() == min(budget, len(values))
    assert kept[:first].all()
    assert kept[max(len(values) - recent, 0) :].all()


def test_each_text_of_a_batch_has_an_end_of_its_own():
    scores = xr.DataArray(
        [[3.0, 2.0, 1.0, 0.0], [0.0, 2.0, NONE, NONE]],
        dims=("sample", "key"),
        coords={"key": np.arange(4), "key_length": ("sample", [4, 2])},
    )

    assert places(kept_keys(scores, 2, recent=1)) == [[0, 3], [0, 1]]
    assert places(heavy_hitters(scores, heavy=0.5, recent=0.25)) == [[0, 1, 3], [1]]


def released(scores: torch.Tensor, heavy: float, recent: float) -> torch.Tensor:
    """The mask of H2O's code after a prompt, in its steps."""
    n_keys = scores.shape[-1]
    n_heavy, n_recent = int(heavy * n_keys), int(recent * n_keys)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if n_recent:
        mask[:, -n_recent:] = True
    top = scores[:, : n_keys - n_recent].topk(n_heavy).indices
    return mask.scatter(-1, top, True)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.29, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_heavy_hitters_are_those_of_the_released_code(shares):
    scores = torch.rand(3, 37, generator=torch.Generator().manual_seed(0))
    heavy, recent = shares
    kept = heavy_hitters(over_keys(*scores.tolist()), heavy=heavy, recent=recent)

    assert torch.equal(torch.from_numpy(kept.values), released(scores, heavy, recent))


def test_later_attention_is_what_the_second_part_gives_to_the_first():
    name = "mistral"
    model, inputs = tiny(name)
    capture = Capture((ReceivedLate(4),), edges=None, residual=False)
    found = later_attention(interp.trace(model, inputs, capture=capture))

    def of(dtype, moved=0):
        layers = run(name, inputs, dtype, moved).attentions
        return torch.stack([p[..., -4:, :-4].mean(2) for p in layers], 1)

    ours = torch.from_numpy(found.values).float()
    twins = [of(torch.float32, moved) for moved in range(3)]
    assert_as_precise(ours, of(torch.float64), *twins)
    assert found.dims == ("sample", "layer", "head", "key")


def test_kept_keys_hold_a_share_of_later_attention():
    later = over_keys([0.1, 0.2, 0.3, 0.0, 0.2])
    scores = xr.Dataset({"good": later, "bad": -later})
    held = recall_of_mass(scores, later, (0.4, 1.0), seeds=range(4))

    assert held["good"].values.ravel() == pytest.approx([5 / 8, 1])
    assert held["bad"].values.ravel() == pytest.approx([1 / 8, 1])
    assert (held["best"] >= held["random"]).all()
    assert held["random"].dims == ("seed", "budget", "head")
    assert held["random"].sel(budget=1.0).values == pytest.approx(1)


def test_the_same_keys_stay_in_any_case_under_every_score():
    later = over_keys([0.5, 0.1, 0.2, 0.1, 0.1])
    scores = xr.Dataset({"bad": -later})
    held = recall_of_mass(scores, later, (0.4,), first=1, recent=1)

    for name in ("bad", "random", "best"):
        assert held[name].values == pytest.approx(0.6), name


def test_a_score_that_follows_later_attention_correlates_fully():
    later = over_keys([0.1, 0.2, 0.4, 0.3, 0.0], [0.2] * 5)
    scores = xr.Dataset({"same": later**2, "other": -later, "few": later.copy()})
    scores["few"][:, 0] = NONE
    found = rank_correlation(scores, later)

    assert found["same"][0] == pytest.approx(1)
    assert found["other"][0] == pytest.approx(-1)
    assert found["same"][1].isnull(), "equal values have no order"


def test_scores_that_have_seen_their_judges_are_refused():
    later = over_keys([0.1, 0.2])
    scores = xr.Dataset({"whole": over_keys([1, 2, 3])})
    scores = scores.rename(key="place").rename(place="key")

    with pytest.raises(InputError, match=r"whole scores 3 keys.*on 2"):
        recall_of_mass(scores, later)
    with pytest.raises(InputError, match=r"whole scores 3 keys.*on 2"):
        rank_correlation(scores, later)


def test_a_budget_without_room_for_what_stays_is_refused():
    with pytest.raises(InputError, match=r"budget of 3 .* first 2 and the last 2"):
        kept_keys(over_keys([1, 2, 3, 4, 5]), 3, first=2, recent=2)


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.6, 0.5)])
def test_shares_of_more_than_the_prompt_are_refused(shares):
    with pytest.raises(InputError, match=f"heavy={shares[0]} and recent={shares[1]}"):
        heavy_hitters(over_keys([1, 2]), heavy=shares[0], recent=shares[1])


def test_a_text_without_a_first_part_is_refused():
    with pytest.raises(InputError, match=r"last 4 queries .* 4 tokens"):
        later_attention(hand.trace(self=hand.site(hand.uniform(4), last=4)))


def test_later_attention_needs_its_statistic():
    node = hand.site(hand.uniform(4)).drop_vars("received_late")

    with pytest.raises(NotCapturedError, match="ReceivedLate"):
        later_attention(hand.trace(self=node))


N_FIRST, N_LATER = 198, 32


@cache
def judged() -> tuple[xr.Dataset, xr.DataArray]:
    """Scores of the first part of a text, and what the second part really gave it."""
    model = interp.load("smollm2-135m")
    assert model.tokenizer is not None
    ids = model.tokenizer(shipped())["input_ids"][: N_FIRST + N_LATER]
    first = Capture((Received(), ReceivedLate()), edges=None, residual=False)
    whole = Capture((ReceivedLate(N_LATER),), edges=None, residual=False)
    trace = interp.trace(model, ids[:N_FIRST], capture=first)
    later = later_attention(interp.trace(model, ids, capture=whole))
    scores = token_importance(trace)
    expected = ExpectedAttention(n_future=N_LATER, value_norm=False)
    scores[expected.name] = expected(model, ids[:N_FIRST])
    scores["random"] = later.copy(data=np.random.default_rng(0).random(later.shape))
    return scores, later


@pytest.mark.real
@pytest.mark.slow
def test_a_fifth_of_the_keys_holds_most_of_the_attention():
    mass = judged()[0]["accumulated_attention"]
    ordered = np.sort(mass.values)[..., ::-1]
    held = ordered[..., : N_FIRST // 5].sum(-1) / ordered.sum(-1)

    assert np.median(held) > 0.6
    assert 0.5 < (mass.argmax("key") == 0).mean() < 0.8


@pytest.mark.real
@pytest.mark.slow
def test_every_score_foretells_later_attention_better_than_chance():
    found = rank_correlation(*judged()).median()

    assert abs(found["random"]) < 0.05
    for name in ("accumulated_attention", "observation_window", "expected_attention"):
        assert found[name] > 0.3, name
    assert found["expected_attention"] > found["accumulated_attention"]


@pytest.mark.real
@pytest.mark.slow
def test_keys_kept_by_a_score_hold_more_later_attention_than_random_ones():
    held = recall_of_mass(*judged(), (0.3,), first=4, recent=32).median()

    for name in ("accumulated_attention", "observation_window", "expected_attention"):
        assert held["random"] + 0.1 < held[name] <= held["best"], name
