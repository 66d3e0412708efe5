"""Token-level credit: which tokens a policy gradient should listen to most."""

from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from interp.errors import InputError
from interp.probes.coupling import largest

Kind = Literal["local", "global", "coupled"]
Curve = Float[np.ndarray, " token"]
Marks = Bool[np.ndarray, " token"]

SOURCE = (
    "arXiv:2510.13554 section 5; it gives no thresholds and no share passed on: here "
    "medians and a half. A token that introduces several anchors counts once"
)


def credit(
    rhythm: xr.Dataset,
    kind: Kind = "coupled",
    *,
    horizon: str = "10-100",
    share: float = 0.4,
    amplification: float = 1.5,
    back: int = 3,
    passed: float = 0.5,
    quiet: float | None = None,
    jump: float | None = None,
) -> xr.DataArray:
    """The factor of every token's advantage.

    Args:
        rhythm: With `waad` and `delta` (token) and `fai` (token), or over `horizon`,
            as `Rhythm.read` or `rhythm` gives them.
        kind: Amplifies preplan tokens (`local`), anchors (`global`), or anchors with
            those that introduce them (`coupled`): an anchor where WAAD is low, shortly
            after it changed much, passes a part of its bonus back to that change.
        horizon: Along `horizon`, where there is such a dimension.
        share: Share of tokens that preplan, and of those that are anchors.
        amplification: Factor of an amplified token, of at least 1.
        back: How many tokens back an introduction may lie, `k`.
        passed: Share of the bonus that is passed back, `alpha`.
        quiet: WAAD up to which an anchor is dominated locally; each text's median.
        jump: Change from which on a token introduces one; each text's median.

    Returns:
        Along `token` (and `chain`); 1 where nothing is amplified, NaN beyond a chain's
        end. `.values` multiply advantages as `credited` does.

    Raises:
        InputError: An option means nothing, or the horizon does not exist.
    """
    if kind not in ("local", "global", "coupled"):
        raise InputError(
            f"Credit of the kind {kind!r} was asked for. Choose local, global, coupled."
        )
    if amplification < 1 or back < 1 or not 0 <= passed <= 1 or not 0 < share < 1:
        raise InputError(
            "Credit needs an amplification of at least 1, back of at least 1, and "
            f"passed and share between 0 and 1; got {amplification}, {back}, {passed} "
            f"and {share}. Usual are 1.5, 3, 0.5 and 0.4."
        )
    bonus, fai = amplification - 1, _at(rhythm, horizon)
    options = {"kind": kind, "share": share, "amplification": amplification}
    if kind == "coupled":
        options |= {"back": back, "passed": passed}
        options |= {"quiet": "median" if quiet is None else quiet}
        options |= {"jump": "median" if jump is None else jump}

    def gamma(waad: Curve, delta: Curve, fai: Curve) -> Curve:
        there = np.isfinite(waad)
        if kind == "coupled":
            own, given, taken = coupled(waad, delta, fai, share, back, quiet, jump)
            bonuses = own + (1 - passed) * given + passed * taken
        else:
            bonuses = largest(delta if kind == "local" else fai, share)
        return np.where(there, 1 + bonus * bonuses, np.nan)

    factors = xr.apply_ufunc(
        gamma,
        rhythm["waad"],
        rhythm["delta"],
        fai,
        input_core_dims=[["token"]] * 3,
        output_core_dims=[["token"]],
        vectorize=True,
    )
    return factors.rename("credit").assign_attrs(
        units="factor", long_name=f"{kind} credit", source=SOURCE, **options
    )


def coupled(
    waad: Curve,
    delta: Curve,
    fai: Curve,
    share: float,
    back: int,
    quiet: float | None = None,
    jump: float | None = None,
) -> tuple[Marks, Marks, Marks]:
    """Anchors of their own, those that are dominated locally, and their introductions.

    Args:
        waad: Over tokens; NaN beyond the end.
        delta: Its changes; NaN at the last token.
        fai: NaN where no query is in the horizon.
        share: Share of tokens that are anchors.
        back: How many tokens back an introduction may lie.
        quiet: WAAD up to which an anchor can be dominated; its median if None.
        jump: Change from which on a token introduces; its median if None.

    Returns:
        Three sets of tokens; the first two have none in common.
    """
    anchors = largest(fai, share)
    quiet = float(np.nanmedian(waad)) if quiet is None else quiet
    jump = _median(delta) if jump is None else jump
    dominated, introduces = np.zeros_like(anchors), np.zeros_like(anchors)
    for token in np.flatnonzero(anchors & (waad <= quiet)):
        before = delta[max(token - back, 0) : token]
        if before.size and before.max() >= jump:
            dominated[token] = True
            introduces[token - before.size + before.argmax()] = True
    return anchors & ~dominated, dominated, introduces


def credited(
    advantages: Float[np.ndarray, "..."],
    factors: Float[np.ndarray, "*#chain token"],
    signs: Literal["both", "positive"] = "both",
) -> Float[np.ndarray, "*chain token"]:
    """Advantages of tokens, shaped by their credit.

    Args:
        advantages: Of tokens, or of whole chains with a last axis of length 1.
        factors: As `credit` gives them, `.values`; NaN (padding) gives 0.
        signs: `both` (second version), or only advantages that are not negative
            (first version).

    Raises:
        InputError: `signs` is something else.
    """
    if signs not in ("both", "positive"):
        raise InputError(f"signs={signs!r} was asked for. Choose 'both' or 'positive'.")
    shaped = advantages * np.nan_to_num(factors, nan=0.0)
    there = np.isfinite(factors)
    plain = np.where(there, advantages, 0.0)
    return shaped if signs == "both" else np.where(advantages >= 0, shaped, plain)


def _at(rhythm: xr.Dataset, horizon: str) -> xr.DataArray:
    """FAI at one horizon."""
    fai = rhythm["fai"]
    if "horizon" not in fai.dims:
        return fai
    known = [str(each) for each in fai["horizon"].values]
    if horizon not in known:
        raise InputError(
            f"Credit at the horizon {horizon} was asked for; there are "
            f"{', '.join(known)}. Choose one, such as horizon={known[-1]!r}."
        )
    return fai.sel(horizon=horizon, drop=True)


def _median(values: Curve) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else np.inf
