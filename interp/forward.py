"""Running a model's forward: in evaluation mode, without what nobody reads."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; each part gets its own mode back."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def lean(module: nn.Module, n_logits: int = 1) -> dict[str, Any]:
    """Options that spare a forward what nobody reads: the cache and most logits.

    Args:
        module: The model.
        n_logits: Tokens at the end whose logits are wanted.
    """
    known = inspect.signature(module.forward).parameters
    options = {"use_cache": False, "logits_to_keep": n_logits}
    return {name: value for name, value in options.items() if name in known}
