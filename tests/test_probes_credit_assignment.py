"""Credit of tokens by hand, and against its formulas in loops."""

import numpy as np
import pytest
import xarray as xr

from interp.errors import InputError
from interp.probes.credit_assignment import coupled, credit, credited

NAN = np.nan


def curves(seed, n_tokens=25, undefined=5):
    rng = np.random.default_rng(seed)
    waad, fai = rng.random(n_tokens) * 10, rng.random(n_tokens)
    fai[n_tokens - undefined :] = NAN
    delta = np.append(np.abs(np.diff(waad)), NAN)
    arrays = {"waad": waad, "delta": delta, "fai": fai}
    return xr.Dataset({name: ("token", each) for name, each in arrays.items()})


def top(values, share):
    """Indices of the largest share of what has a value."""
    known = [t for t in range(len(values)) if not np.isnan(values[t])]
    ranked = sorted(known, key=lambda t: (-values[t], t))
    return set(ranked[: max(round(share * len(known)), 1)])


def by_loops(own, kind, share, amplification, back, passed):
    """The formula of the paper, a token at a time."""
    waad, delta, fai = (own[name].values for name in ("waad", "delta", "fai"))
    bonus = amplification - 1
    if kind != "coupled":
        chosen = top(delta if kind == "local" else fai, share)
        return [1 + bonus * (t in chosen) for t in range(len(waad))]
    anchors = top(fai, share)
    quiet = np.median([w for w in waad if not np.isnan(w)])
    jump = np.median([d for d in delta if not np.isnan(d)])
    dominated, introduces = set(), set()
    for t in sorted(anchors):
        before = list(range(max(t - back, 0), t))
        if waad[t] <= quiet and before and max(delta[u] for u in before) >= jump:
            dominated.add(t)
            introduces.add(max(before, key=lambda u: (delta[u], -u)))
    return [
        1
        + bonus * (t in anchors - dominated)
        + (1 - passed) * bonus * (t in dominated)
        + passed * bonus * (t in introduces)
        for t in range(len(waad))
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["local", "global", "coupled"])
def test_credit_is_that_of_the_formula(seed, kind):
    own = curves(seed)
    options = {"share": 0.4, "amplification": 2.5, "back": 1 + seed % 3, "passed": 0.3}

    found = credit(own, kind, **options)
    np.testing.assert_allclose(found, by_loops(own, kind, **options))
    assert found.attrs["units"] == "factor"
    assert found.attrs["kind"] == kind


def test_an_anchor_passes_a_part_of_its_bonus_back():
    # Anchors are tokens 2 and 4. WAAD of token 2 is low, right after it fell; that of
    # token 4 is high, so it keeps its own.
    waad, fai = np.array([1.0, 9, 1, 1, 8]), np.array([0, 0, 1, 0, 0.9])
    delta = np.append(np.abs(np.diff(waad)), NAN)
    own, given, taken = coupled(waad, delta, fai, 0.4, 1)
    assert np.flatnonzero(own).tolist() == [4]
    assert np.flatnonzero(given).tolist() == [2]
    assert np.flatnonzero(taken).tolist() == [1]

    text = xr.Dataset({"waad": ("token", waad), "delta": ("token", delta)})
    text = text.assign(fai=("token", fai))
    found = credit(text, back=1, passed=0.5)
    assert found.values.tolist() == [1, 1.25, 1.25, 1, 1.5]
    kept = credit(text, back=1, passed=0.0)
    assert kept.values.tolist() == credit(text, "global").values.tolist()


def test_a_token_that_introduces_and_is_an_anchor_gets_both():
    # Token 1 is an anchor where WAAD is high, and introduces token 2.
    waad, fai = np.array([5.0, 9, 1, 2, 6]), np.array([0, 0.9, 1, 0, 0])
    text = xr.Dataset({"waad": ("token", waad), "fai": ("token", fai)})
    text["delta"] = ("token", np.append(np.abs(np.diff(waad)), NAN))

    assert credit(text, passed=0.5).values.tolist() == [1, 1.75, 1.25, 1, 1]


def test_thresholds_that_are_given_take_the_place_of_medians():
    own = curves(0)
    never = credit(own, jump=1e9)
    assert never.values.tolist() == credit(own, "global").values.tolist()
    assert never.attrs["jump"] == 1e9
    assert never.attrs["quiet"] == "median"
    waad = own["waad"].values
    assert not coupled(waad, own["delta"].values, waad, 0.4, 3, -1.0)[1].any()


def test_without_amplification_nothing_changes():
    assert (credit(curves(1), amplification=1.0) == 1).all()


def test_chains_are_told_apart_and_end_where_they_end():
    one, other = curves(0), curves(1, n_tokens=18)
    both = xr.concat([one, other.pad(token=(0, 7))], "chain")
    found = credit(both)

    np.testing.assert_array_equal(found[0], credit(one))
    np.testing.assert_array_equal(found[1, :18], credit(other))
    assert found[1, 18:].isnull().all()
    shaped = credited(np.full((2, 1), -2.0), found.values)
    assert (shaped[1, 18:] == 0).all()
    np.testing.assert_array_equal(shaped[0], -2 * found[0])


def test_the_first_version_shapes_no_negative_advantage():
    advantages, factors = np.array([[-1.0, 2, 0, 3]]), np.array([[1.5, 1.5, 1.5, NAN]])

    assert credited(advantages, factors).tolist() == [[-1.5, 3, 0, 0]]
    assert credited(advantages, factors, "positive").tolist() == [[-1, 3, 0, 0]]


def test_a_horizon_is_chosen_by_its_name():
    own = curves(2)
    names = np.array(["10-50", "10-100"], dtype=object)
    fai = xr.concat([own["fai"], own["fai"][::-1]], "horizon")
    both = own.drop_vars("fai").assign(fai=fai).assign_coords(horizon=names)

    np.testing.assert_array_equal(credit(both, horizon="10-50"), credit(own))
    with pytest.raises(InputError, match=r"horizon 0-end.*10-50, 10-100"):
        credit(both, horizon="0-end")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"amplification": 0.5}, "0.5"),
        ({"back": 0}, "back of at least 1"),
        ({"passed": 1.5}, "1.5"),
        ({"share": 0.0}, "0.0"),
    ],
)
def test_options_without_meaning_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        credit(curves(0), **options)
