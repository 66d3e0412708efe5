"""Models that nnsight has wrapped: the module itself, or attention within its trace."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interp.adapters.shipped import call_name
from interp.adapters.torch_function import padding_name
from interp.adapters.versions import warn_untested
from interp.anatomy import Site
from interp.errors import InputError, UnsupportedModelError

TESTED = "0.8", "0.9"


def is_wrapper(model: Any) -> bool:
    """Whether an object is an nnsight model, without importing nnsight."""
    envoys = sys.modules.get("nnsight.intervention.envoy")
    kind = getattr(envoys, "Envoy", None)
    return kind is not None and isinstance(model, kind)


def known_module(wrapper: Any) -> nn.Module:
    """The module inside, with or without weights.

    Raises:
        UnsupportedModelError: This version keeps it elsewhere.
    """
    warn_untested("nnsight", *TESTED)
    module = getattr(wrapper, "_module", None)
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            "The module of an nnsight model was looked for in its '_module'; found "
            f"{type(module).__name__}. Install nnsight {TESTED[0]}."
        )
    return module


def wrapped_model(wrapper: Any) -> nn.Module:
    """The transformers model inside, on which nnsight's own traces run as before.

    Raises:
        InputError: Its weights are not loaded yet.
        UnsupportedModelError: This version keeps it elsewhere.
    """
    module = known_module(wrapper)
    if any(parameter.is_meta for parameter in module.parameters()):
        raise InputError(
            "An nnsight model was given whose weights are not loaded. Call its "
            "dispatch(), or make it with dispatch=True."
        )
    return module


def forward(
    wrapper: Any,
    sites: Sequence[Site],
    attention: Callable[..., tuple[Tensor, None]],
    inputs: dict[str, Any],
) -> None:
    """One forward within an nnsight trace, whose attention calls go to `attention`.

    Args:
        wrapper: The nnsight model.
        sites: Its attention modules in the order in which they run.
        attention: Called as transformers calls attention; what it gives is put in the
            place of the call's own output.
        inputs: Of the model's forward.

    Raises:
        UnsupportedModelError: A module's code makes no call of the interface.
    """
    with torch.no_grad(), wrapper.trace(**inputs):
        for site in sites:
            operation = call_of(wrapper, site.module_name)
            (owner, *tensors), options = operation.inputs
            given = {"attention_mask": None} if len(tensors) == 3 else {}
            real = inputs.get(padding_name(wrapper._module, site))
            if real is not None and real.shape[1] == tensors[1].shape[2]:
                given["key_padding"] = real.bool()
            output, _ = attention(owner, *tensors, **{**given, **options})
            operation.output = (output, None)


def call_of(wrapper: Any, module_name: str) -> Any:
    """The call of the attention interface in a module's code, within a trace.

    Raises:
        UnsupportedModelError: The module's code makes no such call.
    """
    source = wrapper.get(module_name).source
    name = call_name(source.names)
    if name is None:
        raise UnsupportedModelError(
            f"A call 'attention_interface_<n>' was looked for in {module_name}; "
            f"nnsight names {', '.join(source.names)}. Use door='auto', which traces "
            "the module itself."
        )
    return source.node(name)
