"""What all tests share: checked annotations, no network, one thread, `untouched`."""

import os
from pathlib import Path

# ruff: noqa: E402  (annotations are checked from the first import on)
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

if not torch.cuda.is_available():
    # Before anything imports triton: the same GPU programs run on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"

from jaxtyping import install_import_hook

# Where axes are annotated. Pages and commands check what people give them themselves;
# so do modules that are not named here, whose tests give them what is no such literal.
CHECKED = """probes heads inputs masks metrics evaluation recording residual storage tap
activations editing forward interventions.activations interventions.calibration
interventions.decorrelation interventions.edges interventions.local interventions.losses
interventions.positions interventions.prefix interventions.sweeping
interventions.weights neurons"""
# Triton reads the source of its programs, and must not find a checker around them.
KERNELS = [
    f"kernels.{path.stem}"
    for path in Path(__file__).parent.parent.joinpath("kernels").glob("*.py")
    if "@triton.jit" not in path.read_text(encoding="utf-8")
]
modules = [f"interp.{name}" for name in (*CHECKED.split(), *KERNELS)]
install_import_hook(modules, "checked.check")

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import hypothesis
import pytest
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
        name: part.config
        for name, part in parts.items()
        if hasattr(getattr(part, "config", None), "to_json_string")
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


@pytest.fixture(scope="session")
def whisper() -> Any:
    """The catalog's speech model."""
    import interp

    return interp.load("whisper-base", device="cpu")


@pytest.fixture(scope="session")
def beckett() -> Path:
    """Ten seconds of speech."""
    from interp import catalog

    return catalog.fetch("beckett") / "beckett.wav"


@pytest.fixture(scope="session")
def lighthouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the default model's trace of a short text, with query and key."""
    import interp
    from interp.capture import Capture
    from interp.tasks.reading import shipped

    path = tmp_path_factory.mktemp("traced") / "lighthouse"
    model = interp.load("smollm2-135m", device="cpu")
    everything = Capture(vectors=True)
    interp.trace(model, shipped(), max_tokens=48, capture=everything, out=path)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, for the tests of a module."""
    from explorer_browser import browser

    with browser() as started:
        yield started
