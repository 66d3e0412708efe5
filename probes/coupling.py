"""Whether the peaks of one curve meet what another curve says, more than by chance.

All three statistics of the rhythm are one: the mean of some value over marked tokens,
against its mean over as many tokens drawn at random.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy.signal import find_peaks

from interp.errors import InputError
from interp.probes.reading import Bootstrap

LINKS = xr.DataArray(
    np.array(["entropy", "receivers", "follows"], dtype=object), dims="link"
)
"""Entropy at WAAD peaks; global FAI peaks among those of receiver heads; FAI peaks at
or right after a WAAD peak."""

SOURCE = (
    "arXiv:2510.13554 section 4; it does not say what a peak is, and shuffles peaks. "
    "`null='shift'` moves them all by one random step instead, around the end of the "
    "text, which keeps their distances"
)


@dataclass(frozen=True)
class Coupling:
    """When a curve has a peak, and what chance is."""

    peaks: Literal["maxima", "quantile"] = "quantile"
    """Local maxima, or the tokens of the largest values."""
    share: float = 0.2
    """Share of tokens that are peaks by quantile."""
    null: Literal["shuffle", "shift"] = "shuffle"
    """Marks fall anywhere, or keep their distances: neighbouring tokens are alike."""
    draws: int = 1000
    """Of chance; the least p-value is one over one more."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Refuse options that mean nothing."""
        known = {"peaks": ("maxima", "quantile"), "null": ("shuffle", "shift")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name}={getattr(self, name)!r} was asked for. Choose "
                    f"{' or '.join(map(repr, choices))}."
                )
        if not 0 < self.share < 1 or self.draws < 1:
            raise InputError(
                "Peaks are a share of tokens between 0 and 1, and chance is drawn at "
                f"least once; got share={self.share} and draws={self.draws}. Usual are "
                "0.2 and 1000."
            )

    def find(self, curve: Float[np.ndarray, " token"]) -> Bool[np.ndarray, " token"]:
        """The peaks of a curve; NaN is none."""
        if self.peaks == "quantile":
            return largest(curve, self.share)
        found = np.zeros(curve.shape, dtype=bool)
        found[find_peaks(np.nan_to_num(curve, nan=-np.inf))[0]] = True
        return found

    def __call__(
        self,
        marked: Bool[np.ndarray, " token"],
        value: Float[np.ndarray, " token"],
    ) -> tuple[float, float, Float[np.ndarray, " draw"]]:
        """The mean of a value over marked tokens, by chance too.

        Args:
            marked: The tokens looked at.
            value: Of every token; NaN tokens count nowhere.

        Returns:
            The mean over marked tokens; its expectation over all positions of the
            marks; the mean of every draw. NaN where no token is marked.
        """
        counted = np.isfinite(value)
        marked, value = marked[counted], value[counted]
        if not marked.any():
            return np.nan, np.nan, np.full(self.draws, np.nan)
        # Several texts must not be shuffled alike.
        own = zlib.crc32(value.astype("float64").tobytes() + marked.tobytes())
        rng = np.random.default_rng([self.seed, own])
        drawn = np.empty(self.draws)
        for draw in range(self.draws):
            if self.null == "shuffle":
                elsewhere = rng.permutation(value)
            else:
                elsewhere = np.roll(value, rng.integers(len(value)))
            drawn[draw] = elsewhere[marked].mean()
        return float(value[marked].mean()), float(value.mean()), drawn


def largest(values: np.ndarray, share: float) -> Bool[np.ndarray, " token"]:
    """The share of tokens with the largest values, of those that have one.

    Args:
        values: Over tokens; NaN is never among them.
        share: Rounded to a whole number, at least one; of equals the earlier wins.
    """
    n_valued = int(np.isfinite(values).sum())
    n_chosen = min(max(round(share * n_valued), 1), n_valued)
    order = np.argsort(-values, kind="stable")[:n_chosen]
    found = np.zeros(values.shape, dtype=bool)
    found[order] = True
    return found


def couplings(curves: xr.Dataset, options: Coupling) -> xr.Dataset:
    """The three statistics of one text.

    Args:
        curves: `waad_peak` (token), `fai_peak` and `receiver_peak` (horizon, token),
            `fai` (horizon, token), and `entropy` (token) where it is known.
        options: What chance is.

    Returns:
        Over (link, horizon): `observed` and `expected`, `lift` of the one over the
        other, `p` (two-sided); and `null_lift`, also over `draw`. Links are those of
        `LINKS`; the first does not depend on the horizon.
    """
    shape = LINKS.size, curves.sizes["horizon"]
    observed, expected = np.full(shape, np.nan), np.full(shape, np.nan)
    drawn = np.full((*shape, options.draws), np.nan)
    waad_peak = curves["waad_peak"].values
    follows = waad_peak | np.append(False, waad_peak[:-1])
    for n in range(shape[1]):
        own = curves.isel(horizon=n)
        defined = np.isfinite(own["fai"].values)
        pairs = [
            (own["receiver_peak"].values, own["fai_peak"].values),
            (own["fai_peak"].values, follows),
        ]
        links = [(m, np.where(defined, value, np.nan)) for m, value in pairs]
        if "entropy" in curves:
            links.insert(0, (waad_peak, curves["entropy"].values))
        first = LINKS.size - len(links)
        for link, pair in enumerate(links, first):
            observed[link, n], expected[link, n], drawn[link, n] = options(*pair)
    dims = "link", "horizon"
    found = xr.Dataset(
        {
            "observed": (dims, observed),
            "expected": (dims, expected),
            "drawn": ((*dims, "draw"), drawn),
        },
        coords={"link": LINKS.values, "horizon": curves["horizon"]},
    )
    return _with_lift(found)


def over_texts(texts: xr.Dataset, bootstrap: Bootstrap) -> xr.Dataset:
    """The three statistics over several texts.

    The lift is that of the mean over texts, against the mean by chance; in each draw
    chance moves the peaks of all texts.

    Args:
        texts: What `couplings` gives, along `chain`.
        bootstrap: How intervals over texts are made.

    Returns:
        Over (link, horizon): `mean_observed`, `mean_expected`, `mean_lift`, `mean_p`,
        and `lift_interval`, also over `bound`, NaN for a single text.
    """
    has = texts["observed"].notnull()
    names = ["observed", "expected", "drawn"]
    mean = _with_lift(texts[names].where(has).mean("chain"))
    # The ratio of two means is a mean of ratios, weighted by what they are ratios to.
    weights = texts["expected"].where(has, 0)
    bounds = bootstrap.interval(texts["lift"], "chain", weights)
    how = bootstrap.says(f"{texts.sizes['chain']} texts")
    kept = mean[["observed", "expected", "lift", "p"]]
    kept = kept.rename({name: f"mean_{name}" for name in kept})
    bounds = bounds.assign_attrs(texts["lift"].attrs, interval=how)
    return kept.assign(lift_interval=bounds)


def _with_lift(found: xr.Dataset) -> xr.Dataset:
    """Lift and p of what was observed, expected and drawn."""
    expected = found["expected"].where(found["expected"] > 0)
    off, chance = found["observed"] - expected, found["drawn"] - expected
    slack = 1e-12 * expected
    as_far = (abs(chance) >= abs(off) - slack).sum("draw")
    p = ((as_far + 1) / (found.sizes["draw"] + 1)).where(off.notnull())
    long = {"units": "", "long_name": "", "source": SOURCE}
    of_link = "nats for entropy, else a fraction"
    return xr.Dataset(
        {
            "observed": found["observed"].assign_attrs(
                long | {"units": of_link, "long_name": "mean at peaks"}
            ),
            "expected": found["expected"].assign_attrs(
                long | {"units": of_link, "long_name": "mean at random places"}
            ),
            "lift": (off / expected).assign_attrs(
                long | {"units": "fraction", "long_name": "observed over expected, - 1"}
            ),
            "p": p.assign_attrs(
                long | {"units": "fraction", "long_name": "p, two-sided"}
            ),
            "drawn": found["drawn"].assign_attrs(
                long | {"units": of_link, "long_name": "mean at places drawn"}
            ),
        }
    )
