"""Small random models of the families of transformers, made from their configs alone.

A family's own default config is shrunk: every field that is known to be a size gets a
small value. Weights are larger than at a real initialization, so that attention is far
from uniform and an error in a rule shows.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp.errors import InputError, UnsupportedModelError
from interp.forward import lean

MAPPINGS = {
    "causal LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "images": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
"""What a model is for, and the auto mapping of its classes."""

LARGEST = 5_000_000
"""Parameters that a model may have."""

D_MODEL, N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, D_INNER = 32, 2, 4, 2, 8, 48
VOCAB, N_TOKENS, WINDOW = 96, 12, 5

SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), D_MODEL
    ),
    **dict.fromkeys(("embedding_size", "hidden_dim", "word_embed_proj_dim"), D_MODEL),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "d_inner", "ffn_hidden_size"), D_INNER
    ),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), D_INNER),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers"), N_LAYERS
    ),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), N_LAYERS),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), N_HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), N_HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), N_KV_HEADS),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size"), D_HEAD),
    "vocab_size": VOCAB,
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), 0),
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64
    ),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("sliding_window", "attention_window", "window_size"), WINDOW),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "rotary_dim": 4,
    "num_mel_bins": 10,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
    "input_feat_per_channel": 10,
    "vocab_size_per_layer_input": VOCAB,
    "num_kv_shared_layers": 0,
}
"""Fields of configs that are sizes, by what they are called."""

_EVERY_SECOND = {"full_attention_interval": 2}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "deepseek_v2": {"qk_head_dim": 12},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "layer_types": ["mamba", "attention"],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "led": {"attention_window": 4},
    "longformer": {"attention_window": 4},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": _EVERY_SECOND,
    "qwen3_5_text": _EVERY_SECOND,
    "qwen3_5_moe_text": _EVERY_SECOND,
    "qwen4_exp_text": _EVERY_SECOND,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "roc_bert": {"shape_vocab_size": 16, "pronunciation_vocab_size": 16},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": N_HEADS},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "prophetnet": {
        "num_hidden_layers": None,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "swin": {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2},
    "swinv2": {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ["en"], "default_language": "en"},
}
"""What else a family's config needs; None leaves a size as it is."""


@dataclass(frozen=True)
class Family:
    """A family of transformers' auto mappings.

    Attributes:
        name: Its `model_type`.
        kind: Which of `MAPPINGS`.
        class_name: Of its model.
    """

    name: str
    kind: str
    class_name: str


def families() -> Iterator[Family]:
    """Every family of the mappings, in the first that has it, by name in each."""
    seen: set[str] = set()
    for kind, mapping in MAPPINGS.items():
        classes = getattr(modeling_auto, mapping)
        for name in sorted(classes):
            if name in CONFIG_MAPPING and name not in seen:
                seen.add(name)
                own = classes[name]
                own = own if isinstance(own, str) else own[0]
                yield Family(name, kind, own)


def small(family: Family) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A random model in eval mode, always the same, and inputs of one sample.

    Raises:
        InputError: The config cannot be shrunk in a general way.
        UnsupportedModelError: The model cannot be made or run here.
    """
    config = _config(family)
    kind = getattr(transformers, family.class_name)
    try:
        with torch.device("meta"):
            n_parameters = sum(p.numel() for p in kind(config).parameters())
        if n_parameters > LARGEST:
            raise InputError(
                f"it has {n_parameters:,} parameters; its sizes have other names"
            )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module = kind(config).eval()
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            inputs = _inputs(module)
            module(**inputs, **lean(module))
    except InputError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnsupportedModelError(f"it cannot be made so small: {said}") from error
    return module, inputs


def _config(family: Family) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[family.name]
    try:
        return kind(**_sizes(kind))
    except Exception as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"its config cannot be shrunk: {said}") from error


def _sizes(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Small values for the sizes of a config, those of its parts included."""
    known: Any = kind()
    sizes = {}
    for name, size in SIZES.items():
        field = getattr(kind, name, None)
        if isinstance(field, property) and field.fset is None:
            continue
        with suppress(Exception):  # a property that refuses is no field
            if isinstance(getattr(known, name), int | None):
                sizes[name] = size
    if "qk_rope_head_dim" in sizes:  # there the width of a head has two parts
        sizes |= {"num_key_value_heads": N_HEADS}
        sizes |= {"head_dim": 4} if "head_dim" in sizes else {}
    parts: Any = kind.sub_configs
    for name, part in parts.items():
        if isinstance(getattr(known, name, None), part):
            sizes[name] = part(**_sizes(part)).to_dict()
    sizes |= OWN.get(kind.model_type, {})
    return {name: size for name, size in sizes.items() if size is not None}


def _inputs(module: Any) -> dict[str, Tensor]:
    config, main = module.config, module.main_input_name
    ids = torch.randint(3, VOCAB, (1, N_TOKENS))
    if main == "pixel_values":
        size = config.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        inputs = {main: torch.randn(1, getattr(config, "num_channels", 3), *size)}
    elif main == "input_features":
        bins = getattr(config, "num_mel_bins", 10)
        if hasattr(config, "input_feat_per_channel"):  # frames first
            return {main: torch.randn(1, 40, bins), "decoder_input_ids": ids}
        n_frames = 2 * getattr(config, "max_source_positions", 20)
        inputs = {main: torch.randn(1, bins, n_frames)}
    elif main == "input_values":
        inputs = {main: torch.randn(1, 4_000)}
    else:
        inputs = {main: torch.randint(3, VOCAB, (1, N_TOKENS + 5))}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs
