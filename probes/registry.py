"""Every detector and every experiment by its name."""

from collections.abc import Iterable
from difflib import get_close_matches

from interp.errors import InputError
from interp.probes.activations import MassiveActivations
from interp.probes.detector import Detector
from interp.probes.expected_attention import ExpectedAttention
from interp.probes.experiment import Experiment
from interp.probes.gates import Gates
from interp.probes.groups import RazorGroups
from interp.probes.head_influence import HeadInfluence
from interp.probes.head_outputs import SpAttenHeads
from interp.probes.importance import (
    AccumulatedAttention,
    ObservationWindow,
    SpAttenTokens,
)
from interp.probes.key_values import KeyValueRetrieval
from interp.probes.locality import Distance, Entropy, GlobalHead, Local
from interp.probes.middle import MiddleMass
from interp.probes.patterns import DuplicateToken, Echo, Induction, PreviousToken
from interp.probes.reach import Span
from interp.probes.receivers import Receivers
from interp.probes.response_tokens import FaiTokens, WaadTokens
from interp.probes.retrieval import RetrievalHeads, SoftRetrieval
from interp.probes.sink_tokens import IntermediateSinks
from interp.probes.sinks import (
    LaterSinks,
    LearnedSinks,
    Sinks,
    SinksAnywhere,
    SinkTokens,
)
from interp.probes.text_experiment import TextExperiment
from interp.probes.writing import Writers

DETECTORS: dict[str, type[Detector]] = {
    kind.name: kind
    for kind in (
        Sinks,
        SinksAnywhere,
        LaterSinks,
        LearnedSinks,
        PreviousToken,
        DuplicateToken,
        Induction,
        Echo,
        RazorGroups,
        Local,
        MiddleMass,
        Distance,
        Entropy,
        GlobalHead,
        SinkTokens,
        MassiveActivations,
        IntermediateSinks,
        AccumulatedAttention,
        ObservationWindow,
        SpAttenTokens,
        Span,
        Receivers,
        WaadTokens,
        FaiTokens,
    )
}
"""Every detector, in the order of tables and reports."""

EXPERIMENTS: dict[str, type[Experiment]] = {
    kind.name: kind
    for kind in (
        RetrievalHeads,
        SoftRetrieval,
        KeyValueRetrieval,
        HeadInfluence,
        SpAttenHeads,
        Gates,
    )
}
"""Every experiment, in the same order."""

TEXT_EXPERIMENTS: dict[str, type[TextExperiment]] = {
    kind.name: kind for kind in (ExpectedAttention, Writers)
}
"""Every experiment on the atlas's own texts."""

Probe = Detector | Experiment | TextExperiment
"""What measures heads or tokens: from a trace, or by running the model."""

Chosen = str | Probe | Iterable[str | Probe] | None
"""Probes by name, or made with other options; None is all that cost little."""


def resolve(chosen: Chosen = None) -> tuple[Probe, ...]:
    """The probes that names stand for, in the order given.

    Raises:
        InputError: A name that no probe has, or two probes of one name.
    """
    if chosen is None:
        known = {**DETECTORS, **EXPERIMENTS, **TEXT_EXPERIMENTS}
        chosen = [name for name, kind in known.items() if kind.by_default]
    elif isinstance(chosen, str | Probe):
        chosen = (chosen,)
    probes = tuple(_named(each) if isinstance(each, str) else each for each in chosen)
    names = [probe.name for probe in probes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"A result holds one {name}; it was asked for {names.count(name)} "
                "times. Run detectors of one name in separate calls."
            )
    return probes


def _named(name: str) -> Probe:
    known = {**DETECTORS, **EXPERIMENTS, **TEXT_EXPERIMENTS}
    if name not in known:
        nearest = get_close_matches(name, known, n=1, cutoff=0)[0]
        raise InputError(
            f"Asked for the detector {name!r}; there is none of that name. Did you "
            f"mean {nearest!r}? There are {', '.join(known)}."
        )
    return known[name]()
