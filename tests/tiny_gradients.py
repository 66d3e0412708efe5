"""Gradients of tiny models, by their parameters and by what was embedded."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from tiny_models import tiny
from torch import Tensor, nn


def exact(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny model in float64, and its inputs."""
    model, inputs = tiny(name)
    if name == "gpt_oss":
        model.set_experts_implementation("eager")  # the other knows no float64
    own = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    return model.double(), own


def gradients(
    model: Any, inputs: dict[str, Any], within: AbstractContextManager
) -> dict[str, Tensor]:
    """Of a number made of all logits: by every parameter, and by what was embedded."""
    model.zero_grad()
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    with within:
        logits = model(**inputs).logits
    handle.remove()
    draw = torch.Generator().manual_seed(3)
    slope = torch.randn(logits.shape, generator=draw, dtype=torch.float64)
    logits.backward(slope.to(logits))
    found = {name: part.grad for name, part in model.named_parameters()}
    found |= {f"embedded {n}": each.grad for n, each in enumerate(embedded)}
    model.zero_grad()
    return {name: slope for name, slope in found.items() if slope is not None}
