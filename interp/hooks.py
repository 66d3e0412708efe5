"""Hooks on the blocks of a model that always come out again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from interp.anatomy import Anatomy
from interp.errors import UnsupportedModelError

Hook = Callable[[Tensor], Tensor | None]
"""Sees a tensor; what it returns takes the tensor's place, None leaves it."""


@contextmanager
def on_output(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Calls `hook` with the module's output, or its first part if there are several."""

    def seen(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        changed = hook(first_tensor(output))
        return None if changed is None else _with_first(output, changed)

    handle = module.register_forward_hook(seen)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_input(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Calls `hook` with the hidden states that the module is given."""

    def seen(_module: nn.Module, inputs: Any, options: dict[str, Any]) -> Any:
        changed = hook(first_tensor(inputs or options.get("hidden_states")))
        if changed is None:
            return None
        if inputs:
            return _with_first(inputs, changed), options
        return inputs, options | {"hidden_states": changed}

    handle = module.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def first_tensor(value: Any) -> Tensor:
    """The tensor itself, or the first of a tuple or model output."""
    while not isinstance(value, Tensor):
        value = value[0]
    return value


def _with_first(value: Any, tensor: Tensor) -> Any:
    """The same tensor, tuple or model output with another first tensor."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, tuple):
        return (_with_first(value[0], tensor), *value[1:])
    value[next(iter(value))] = _with_first(value[0], tensor)
    return value


def blocks(module: nn.Module, anatomy: Anatomy, *sites: str) -> list[nn.Module]:
    """The blocks that hold the attention of the given sites, in order.

    A block is the outermost member of a module list on the way to the attention.
    """
    names: dict[str, None] = {}
    for site in anatomy.sites:
        if site.name not in sites:
            continue
        parts = site.module_name.split(".")
        for depth in range(1, len(parts)):
            parent = module.get_submodule(".".join(parts[:depth]))
            if isinstance(parent, nn.ModuleList):
                names[".".join(parts[: depth + 1])] = None
                break
    return [module.get_submodule(name) for name in names]


def halves(
    block: nn.Module, attention: list[nn.Module]
) -> tuple[list[nn.Module], nn.Module | None]:
    """Modules whose outputs a block adds to the residual stream.

    Returns:
        Those of the attention half, and that of the other half (None where it has no
        module of its own). Where a norm follows (Gemma, OLMo), it is the norm.
    """
    parts = dict(block.named_children())
    if "post_feedforward_layernorm" in parts:
        norm = parts["post_attention_layernorm"]
        return [norm], parts["post_feedforward_layernorm"]
    for name in ("mlp", "feed_forward", "block_sparse_moe", "ffn", "fc2"):
        if name in parts:
            return attention, parts[name]
    return attention, None


def writer(
    module: nn.Module, anatomy: Anatomy, block: nn.Module, half: str
) -> nn.Module:
    """The module whose output one half of a block adds to the residual stream.

    Args:
        module: The model.
        anatomy: Its anatomy.
        block: One of its blocks.
        half: `attention` or `mlp`.

    Raises:
        UnsupportedModelError: The half is no module of its own.
    """
    inside = set(block.modules())
    attention = [module.get_submodule(site.module_name) for site in anatomy.sites]
    attention, mlp = halves(block, [each for each in attention if each in inside])
    found = attention[0] if half == "attention" else mlp
    if found is None:
        raise UnsupportedModelError(
            f"What the {half} of {type(block).__name__} writes was asked for; it is "
            "no module of its own there. Ask for the stream instead."
        )
    return found
