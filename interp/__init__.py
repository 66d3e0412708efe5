"""interp: what every attention head does, at any length, without the N x N map.

`load` a model, `trace` a text, and read the statistics from labelled arrays:

    model = interp.load("smollm2-135m")
    trace = interp.trace(model, text)
    trace["self"]["entropy"].sel(layer=12, head=7)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.anatomy import Anatomy
    from interp.capture import Capture, TokenEdges
    from interp.generation import trace_generation
    from interp.heads import HeadId, HeadSet
    from interp.map_windows import LongMap, long_map, long_map_of
    from interp.models import Model, load
    from interp.storage import open_trace
    from interp.tracing import trace

_HOMES = {
    "Anatomy": "anatomy",
    "Capture": "capture",
    "HeadId": "heads",
    "HeadSet": "heads",
    "LongMap": "map_windows",
    "Model": "models",
    "TokenEdges": "capture",
    "load": "models",
    "long_map": "map_windows",
    "long_map_of": "map_windows",
    "open_trace": "storage",
    "trace": "tracing",
    "trace_generation": "generation",
}

__all__ = [
    "Anatomy",
    "Capture",
    "HeadId",
    "HeadSet",
    "LongMap",
    "Model",
    "TokenEdges",
    "load",
    "long_map",
    "long_map_of",
    "open_trace",
    "trace",
    "trace_generation",
]


def __getattr__(name: str) -> Any:
    """Public names, imported when first used: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"interp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
