"""Whether attention explains: against saliency, of speech and text models."""

from interp.probes.crossattn.comparing import PUBLISHED, compare
from interp.probes.crossattn.saliency import METHODS, Options, named
from interp.probes.crossattn.utterances import Utterance, utterances

__all__ = [
    "METHODS",
    "PUBLISHED",
    "Options",
    "Utterance",
    "compare",
    "named",
    "utterances",
]
