"""Models that TransformerLens has bridged: as they are, or put back for a while.

A bridge stands in the place of each part of the model and builds every attention map
by itself, whose softmax and product with the values are seen in torch's functions. To
trace without these maps, the model's own parts are put back for the time of a block.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from interp.adapters.versions import warn_untested
from interp.errors import UnsupportedModelError

TESTED = "4.3", "4.4"

_COMPONENT = "transformer_lens.model_bridge.generalized_components.base"


def is_bridge(model: Any) -> bool:
    """Whether an object is a TransformerBridge, without importing TransformerLens."""
    bridges = sys.modules.get("transformer_lens.model_bridge")
    kind = getattr(bridges, "TransformerBridge", None)
    return kind is not None and isinstance(model, kind)


def original_model(bridge: Any) -> nn.Module:
    """The transformers model of a bridge, with the bridge's parts in it.

    Raises:
        UnsupportedModelError: This version keeps it elsewhere.
    """
    warn_untested("transformer-lens", *TESTED)
    module = getattr(bridge, "original_model", None)
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            "The transformers model of a TransformerBridge was looked for in its "
            f"'original_model'; found {type(module).__name__}. Install "
            f"transformer-lens {TESTED[0]}."
        )
    return module


@contextmanager
def unbridged(module: nn.Module) -> Iterator[None]:
    """Puts a model's own parts where a bridge's are, until the block ends.

    Args:
        module: The transformers model of a bridge; any other is left as it is.

    Raises:
        UnsupportedModelError: This version keeps the parts elsewhere.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        _put_originals(module, replaced)
        yield
    finally:
        for parent, name, component in reversed(replaced):
            parent._modules[name] = component


def _put_originals(
    parent: nn.Module, replaced: list[tuple[nn.Module, str, nn.Module]]
) -> None:
    component = getattr(sys.modules.get(_COMPONENT), "GeneralizedComponent", None)
    if component is None:
        raise UnsupportedModelError(
            f"{_COMPONENT}.GeneralizedComponent was looked for, of which a bridge's "
            f"parts are; it is not there. Install transformer-lens {TESTED[0]}."
        )
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        own = getattr(child, "original_component", None)
        if isinstance(child, component) and isinstance(own, nn.Module):
            replaced.append((parent, name, child))
            parent._modules[name] = own
            child = own
        _put_originals(child, replaced)
