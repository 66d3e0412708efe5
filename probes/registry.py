"""Every detector by its name, and how to run several on one trace."""

import json
from collections.abc import Iterable
from difflib import get_close_matches

import xarray as xr

from interp.errors import InputError, NotCapturedError
from interp.probes.activations import MassiveActivations
from interp.probes.detector import Detector
from interp.probes.locality import Distance, Entropy, GlobalHead, Local
from interp.probes.patterns import DuplicateToken, Echo, Induction, PreviousToken
from interp.probes.sinks import LearnedSinks, Sinks, SinksAnywhere, SinkTokens

DETECTORS: dict[str, type[Detector]] = {
    kind.name: kind
    for kind in (
        Sinks,
        SinksAnywhere,
        LearnedSinks,
        PreviousToken,
        DuplicateToken,
        Induction,
        Echo,
        Local,
        Distance,
        Entropy,
        GlobalHead,
        SinkTokens,
        MassiveActivations,
    )
}
"""Every detector, in the order of tables and reports."""

Chosen = str | Detector | Iterable[str | Detector] | None
"""Detectors by name, or made with other options; None is all of them."""


def resolve(chosen: Chosen = None) -> tuple[Detector, ...]:
    """The detectors that names stand for, in the order given.

    Raises:
        InputError: A name that no detector has, or two detectors of one name.
    """
    if chosen is None:
        chosen = DETECTORS
    elif isinstance(chosen, str | Detector):
        chosen = (chosen,)
    detectors = tuple(
        _named(each) if isinstance(each, str) else each for each in chosen
    )
    names = [detector.name for detector in detectors]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"A result holds one {name}; it was asked for {names.count(name)} "
                "times. Run detectors of one name in separate calls."
            )
    return detectors


def detect(trace: xr.DataTree, detectors: Chosen = None) -> xr.Dataset:
    """Run detectors on a trace.

    Args:
        trace: As `interp.trace` returns it.
        detectors: Names, detectors made with other options, or both; None runs every
            detector that the trace can feed, and the attribute `skipped` (JSON) says
            which it cannot and why.

    Returns:
        One variable a detector, under its name: over (layer, head), or over tokens.

    Raises:
        InputError: A name that no detector has, or one that is given twice.
        NotCapturedError: The trace lacks what a detector needs that was asked for.
    """
    found, skipped = {}, []
    for detector in resolve(detectors):
        try:
            found[detector.name] = detector(trace)
        except NotCapturedError as error:
            if detectors is not None:
                raise
            skipped.append({"what": detector.name, "why": str(error)})
    return xr.Dataset(found, attrs={"skipped": json.dumps(skipped)})


def _named(name: str) -> Detector:
    if name not in DETECTORS:
        nearest = get_close_matches(name, DETECTORS, n=1, cutoff=0)[0]
        raise InputError(
            f"Asked for the detector {name!r}; there is none of that name. Did you "
            f"mean {nearest!r}? There are {', '.join(DETECTORS)}."
        )
    return DETECTORS[name]()
