"""What is measured: random queries and keys, a real model's, models of random weights.

Everything is made where it is used: weights of billions of parameters never pass the
CPU, and nothing is stored in a wider type on the way.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.anatomy import Anatomy
from interp.app.bench.clock import require_memory
from interp.errors import InputError
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.models import Model, resolve_device, resolve_dtype
from interp.tap import Visit, tap
from interp.tasks.reading import shipped

SEED = 0

_LLAMA: dict[str, Any] = {
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        **_LLAMA,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
}
"""Llamas by size, as their config says it; "8b" is that of Llama 3.1."""


def place_and_type(device: str, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """What the options `--device` and `--dtype` stand for, as `interp.load` reads them.

    Raises:
        InputError: There is no such device or type here.
    """
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    if not isinstance(kind, torch.dtype):
        raise InputError(
            f"--dtype {dtype} leaves the type to a checkpoint, and there is none. "
            "Choose float32, bfloat16 or float16."
        )
    return place, kind


def random_call(
    length: int,
    heads: int,
    kv_heads: int,
    width: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionCall:
    """Causal self-attention of normal random numbers: scores of variance 1."""
    draw = torch.Generator(device).manual_seed(SEED)
    query, key, value = (
        torch.randn(
            1, n, length, width, generator=draw, dtype=torch.float32, device=device
        ).to(dtype)
        for n in (heads, kv_heads, kv_heads)
    )
    mask = replace(MaskRule.causal(length, window), device=device)
    return AttentionCall(query, key, value, ScoreRule(width**-0.5), mask)


def layer_or_middle(model: Model, layer: int | None) -> int:
    """The layer whose attention is taken.

    Raises:
        InputError: The model has no such layer.
    """
    model.anatomy.require_attention()
    count = sum(site.name == _main(model) for site in model.anatomy.sites)
    if layer is not None and layer >= count:
        raise InputError(
            f"Layer {layer} of {model.name} was asked for, which has layers 0 to "
            f"{count - 1}. Choose one of them with --layer."
        )
    return count // 2 if layer is None else layer


def require_positions(model: Model, length: int) -> None:
    """Refuses a text that is longer than a table of positions.

    Rotary positions have no table; beyond the context they go on.

    Raises:
        InputError: Naming both lengths.
    """
    limit = model.max_tokens
    turns = getattr(model.module.config, "rope_parameters", None) is not None
    if limit is not None and length > limit and not turns:
        raise InputError(
            f"{length:,} tokens were asked for; {model.name} has positions for "
            f"{limit:,}. Ask for fewer with --tokens."
        )


def model_call(model: Model, length: int, layer: int) -> AttentionCall:
    """The attention call of one layer on the shipped text."""
    kept: list[AttentionCall] = []

    def visit(seen: Visit) -> None:
        if (seen.site.name, seen.site.layer) == (_main(model), layer):
            kept.append(seen.call)

    ids = text_ids(model, length).to(model.device)
    with torch.no_grad(), tap(model.module, visit, anatomy=model.anatomy):
        model.module.base_model(ids[None], use_cache=False)
    return kept[0]


def _main(model: Model) -> str:
    names = model.anatomy.site_names
    return "self" if "self" in names else names[0]


def text_ids(model: Model, length: int) -> Tensor:
    """That many tokens of the shipped text, repeated where it is too short.

    Raises:
        InputError: The model has no tokenizer.
    """
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} is to read a text, and has no tokenizer. Choose a model "
            "that has one."
        )
    text = shipped()
    ids = model.tokenizer(text, verbose=False)["input_ids"]
    return torch.tensor((ids * (length // len(ids) + 1))[:length])


def random_ids(model: Model, length: int) -> Tensor:
    """Token ids of a model that knows no text."""
    draw = torch.Generator().manual_seed(SEED)
    return torch.randint(model.module.config.vocab_size, (length,), generator=draw)


def random_llama(shape: str, dtype: torch.dtype, device: torch.device) -> Model:
    """A Llama of one of the `SHAPES` with random weights, made on the device.

    Raises:
        InputError: There is no such shape, or no memory for it.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    if shape not in SHAPES:
        raise InputError(
            f"A model of shape '{shape}' was asked for. Choose one of "
            f"{', '.join(SHAPES)} with --shape."
        )
    config = LlamaConfig(**SHAPES[shape])
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    size = sum(p.numel() * p.element_size() for p in empty.parameters())
    try:
        require_memory(size, f"a Llama of shape {shape}", device)
    except MemoryError as error:
        raise InputError(
            f"{error} on {device}. Choose a smaller --shape or another --device."
        ) from error
    torch.manual_seed(SEED)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    name = f"Llama of shape {shape}, random weights"
    return Model(module, None, name, "random", Anatomy.of(module))


def forward(module: nn.Module, ids: Tensor, **options: Any) -> None:
    """One forward as a user runs it who wants the next token, and drops it."""
    with torch.no_grad():
        module(ids[None], use_cache=False, logits_to_keep=1, **options)
