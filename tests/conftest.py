"""What all tests share: checked annotations, no network, one thread, `untouched`."""

import os

# ruff: noqa: E402  (annotations are checked from the first import on)
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# Where axes are annotated. Pages and commands check what people give them themselves.
CHECKED = "kernels probes heads inputs masks metrics recording residual storage tap"
install_import_hook([f"interp.{name}" for name in CHECKED.split()], "checked.check")

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import hypothesis
import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

hypothesis.settings.register_profile("interp", deadline=None, derandomize=True)
hypothesis.settings.load_profile("interp")
torch.set_num_threads(1)

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@pytest.fixture
def untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """`with untouched(model):` fails if anything about the model has changed."""

    @contextmanager
    def watched(module: nn.Module) -> Iterator[None]:
        before = _state(module)
        values = {name: p.detach().clone() for name, p in module.named_parameters()}
        try:
            yield
        finally:
            after = _state(module)
        assert after.keys() == before.keys()
        for what in before:
            assert after[what] == before[what], f"{what} is not what it was"
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, values[name]), f"{name} has other values"

    return watched


def _state(module: nn.Module) -> dict[str, Any]:
    """Everything about a model that a tap or hook could leave behind."""
    parts = dict(module.named_modules())
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    configs = {
        name: part.config for name, part in parts.items() if hasattr(part, "config")
    }
    return {
        "hooks": {
            name: [list(getattr(part, hooks)) for hooks in HOOKS]
            for name, part in parts.items()
        },
        "modes": {name: part.training for name, part in parts.items()},
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
        "forwards": {name: vars(part).get("forward") for name, part in parts.items()},
        "gradients": {name: (t.requires_grad, t.grad) for name, t in tensors.items()},
        "memory": {name: t.data_ptr() for name, t in tensors.items()},
        "attention": {
            name: config._attn_implementation for name, config in configs.items()
        },
        "configs": {name: config.to_json_string() for name, config in configs.items()},
        "random numbers": torch.get_rng_state().tolist(),
        "attention functions": sorted(AttentionInterface._global_mapping),
        "mask functions": sorted(AttentionMaskInterface._global_mapping),
    }
