"""Changes to a running model that come out again; nothing here knows detectors."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.interventions.ablation import AblateHeads, head_means
    from interp.interventions.activations import SetActivations, Steer, mean_activations
    from interp.interventions.calibration import CalibrateSinks, search_heads
    from interp.interventions.deconstruction import deconstruct, layer_set
    from interp.interventions.decorrelation import decorrelation_loss
    from interp.interventions.edges import CutEdges
    from interp.interventions.effects import beats_chance, holm_together, paired_effects
    from interp.interventions.intervention import Intervention
    from interp.interventions.local import LocalHeads
    from interp.interventions.patching import PatchHeads, PatchStream, patch_paths
    from interp.interventions.screening import rank_agreement, screen
    from interp.interventions.sinks import ScaleSinks, Temperature, profile_heads
    from interp.interventions.sweeping import single_heads, sweep
    from interp.interventions.weights import ZeroWeights

_HOMES = {
    "AblateHeads": "ablation",
    "CalibrateSinks": "calibration",
    "CutEdges": "edges",
    "Intervention": "intervention",
    "LocalHeads": "local",
    "PatchHeads": "patching",
    "PatchStream": "patching",
    "ScaleSinks": "sinks",
    "SetActivations": "activations",
    "Steer": "activations",
    "Temperature": "sinks",
    "ZeroWeights": "weights",
    "beats_chance": "effects",
    "deconstruct": "deconstruction",
    "decorrelation_loss": "decorrelation",
    "head_means": "ablation",
    "holm_together": "effects",
    "layer_set": "deconstruction",
    "mean_activations": "activations",
    "paired_effects": "effects",
    "patch_paths": "patching",
    "profile_heads": "sinks",
    "rank_agreement": "screening",
    "screen": "screening",
    "search_heads": "calibration",
    "single_heads": "sweeping",
    "sweep": "sweeping",
}

__all__ = [
    "AblateHeads",
    "CalibrateSinks",
    "CutEdges",
    "Intervention",
    "LocalHeads",
    "PatchHeads",
    "PatchStream",
    "ScaleSinks",
    "SetActivations",
    "Steer",
    "Temperature",
    "ZeroWeights",
    "beats_chance",
    "deconstruct",
    "decorrelation_loss",
    "head_means",
    "holm_together",
    "layer_set",
    "mean_activations",
    "paired_effects",
    "patch_paths",
    "profile_heads",
    "rank_agreement",
    "screen",
    "search_heads",
    "single_heads",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Public names, imported when first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'interp.interventions' has no attribute {name!r}")
    home = importlib.import_module(f"interp.interventions.{_HOMES[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
