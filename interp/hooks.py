"""Hooks on the blocks of a model that always come out again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from interp.anatomy import Anatomy

Hook = Callable[[Tensor], None]


@contextmanager
def on_output(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Calls `hook` with the module's output, or its first part if there are several."""

    def seen(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hook(first_tensor(output))

    handle = module.register_forward_hook(seen)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_input(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Calls `hook` with the hidden states that the module is given."""

    def seen(_module: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        hook(first_tensor(inputs or options.get("hidden_states")))

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
