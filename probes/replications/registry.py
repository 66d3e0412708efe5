"""Every published claim that is measured here, by its name."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from interp.errors import InputError
from interp.probes.replications.activations import (
    MassiveActivationsBias,
    MassiveActivationsFixed,
)
from interp.probes.replications.claim import Claim
from interp.probes.replications.cross_attention import CrossAttentionIsHalf
from interp.probes.replications.head_kinds import InductionAndEcho, LocalAndGlobal
from interp.probes.replications.maps import (
    AdjacentLayers,
    KeysOverLayers,
    KeysOverSteps,
)
from interp.probes.replications.retrieval import (
    CausalRetrieval,
    FewRetrievalHeads,
    IntrinsicRetrieval,
)
from interp.probes.replications.reweighting import SinkReweighting
from interp.probes.replications.rhythm import PreplanThenAnchor
from interp.probes.replications.sinks import FirstTokenSinks, LaterSinks

CLAIMS: dict[str, type[Claim]] = {
    kind.name: kind
    for kind in (
        FirstTokenSinks,
        LaterSinks,
        MassiveActivationsFixed,
        MassiveActivationsBias,
        FewRetrievalHeads,
        IntrinsicRetrieval,
        CausalRetrieval,
        InductionAndEcho,
        LocalAndGlobal,
        PreplanThenAnchor,
        AdjacentLayers,
        KeysOverLayers,
        KeysOverSteps,
        SinkReweighting,
        CrossAttentionIsHalf,
    )
}
"""Every claim, in the order of tables."""


def claimed(settings: Mapping[str, Any]) -> Claim:
    """A claim by its name, with the knobs that are given.

    Args:
        settings: Its name under "claim", and fields of it.

    Raises:
        InputError: No such claim or knob, or a value of another kind.
    """
    given = dict(settings)
    name = str(given.pop("claim", ""))
    if name not in CLAIMS:
        near = get_close_matches(name, CLAIMS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise InputError(
            f"The claim {name!r} was asked for; there is none. {meant}Choose of "
            f"{', '.join(CLAIMS)}."
        )
    kind = CLAIMS[name]
    defaults = {field.name: field.default for field in fields(kind)}
    for knob, value in given.items():
        if knob not in defaults:
            raise InputError(
                f"The claim {name} was given the knob {knob!r}, which it has not. "
                f"Choose of {', '.join(defaults)}."
            )
        given[knob] = value = tuple(value) if isinstance(value, list) else value
        if not _is_like(value, defaults[knob]):
            raise InputError(
                f"The knob {knob} of the claim {name} is like {defaults[knob]!r}; got "
                f"{value!r}. Write it like that."
            )
    return kind(**given)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a default, and above zero."""
    if isinstance(default, tuple):
        is_list = isinstance(value, tuple) and len(value) > 0
        return is_list and all(_is_like(each, default[0]) for each in value)
    if isinstance(default, str):
        return isinstance(value, str)
    kinds = (int, float) if isinstance(default, float) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0
