"""Random models of a few thousand parameters, one a family, made from its config.

Weights are larger than at a real initialization, so that attention is far from uniform
and an error in a rule shows. Every call builds a fresh model from the same seed.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

D_MODEL, N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD = 32, 2, 4, 2, 8
VOCAB, N_TOKENS, WINDOW = 96, 12, 5

_TOKENS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_STACK: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    **_TOKENS,
}
_GROUPED: dict[str, Any] = {
    **_STACK,
    "num_key_value_heads": N_KV_HEADS,
    "head_dim": D_HEAD,
    "max_position_embeddings": 64,
}
_MOE: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}


def _gpt2() -> hf.PreTrainedModel:
    config = hf.GPT2Config(
        n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=64, **_TOKENS
    )
    return hf.GPT2LMHeadModel(config)


def _deepseek_v3() -> hf.PreTrainedModel:
    config = hf.DeepseekV3Config(
        **{**_STACK, "num_key_value_heads": N_HEADS, "max_position_embeddings": 64},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=12,
        kv_lora_rank=10,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
    )
    return hf.DeepseekV3ForCausalLM(config)


def _whisper() -> hf.PreTrainedModel:
    config = hf.WhisperConfig(
        **_TOKENS,
        d_model=D_MODEL,
        encoder_layers=N_LAYERS,
        decoder_layers=N_LAYERS,
        encoder_attention_heads=N_HEADS,
        decoder_attention_heads=N_HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=10,
        max_source_positions=20,
        max_target_positions=64,
        decoder_start_token_id=1,
    )
    return hf.WhisperForConditionalGeneration(config)


def _t5() -> hf.PreTrainedModel:
    config = hf.T5Config(
        **{**_TOKENS, "decoder_start_token_id": 0},
        d_model=D_MODEL,
        d_kv=D_HEAD,
        d_ff=48,
        num_layers=N_LAYERS,
        num_decoder_layers=N_LAYERS,
        num_heads=N_HEADS,
    )
    return hf.T5ForConditionalGeneration(config)


def _bart() -> hf.PreTrainedModel:
    config = hf.BartConfig(
        **_TOKENS,
        d_model=D_MODEL,
        encoder_layers=N_LAYERS,
        decoder_layers=N_LAYERS,
        encoder_attention_heads=N_HEADS,
        decoder_attention_heads=N_HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return hf.BartForConditionalGeneration(config)


def _vit() -> hf.PreTrainedModel:
    config = hf.ViTConfig(
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        image_size=12,
        patch_size=4,
        id2label={0: "zero", 1: "one", 2: "two"},
    )
    return hf.ViTForImageClassification(config)


_GPT: dict[str, Any] = {
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "n_positions": 64,
    **_TOKENS,
}


def _falcon(**options: Any) -> hf.PreTrainedModel:
    stack = {k: v for k, v in _STACK.items() if "inter" not in k}
    return hf.FalconForCausalLM(hf.FalconConfig(**stack, **options))


def _gpt_neo() -> hf.PreTrainedModel:
    config = hf.GPTNeoConfig(
        **_TOKENS,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_layers=N_LAYERS,
        num_heads=N_HEADS,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], N_LAYERS // 2]],
        window_size=WINDOW,
    )
    return hf.GPTNeoForCausalLM(config)


def _mpt() -> hf.PreTrainedModel:
    config = hf.MptConfig(
        d_model=D_MODEL,
        n_heads=N_HEADS,
        n_layers=N_LAYERS,
        max_seq_len=64,
        **_TOKENS,
    )
    return hf.MptForCausalLM(config)


def _mvp() -> hf.PreTrainedModel:
    config = hf.MvpConfig(
        **_TOKENS,
        d_model=D_MODEL,
        encoder_layers=N_LAYERS,
        decoder_layers=N_LAYERS,
        encoder_attention_heads=N_HEADS,
        decoder_attention_heads=N_HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
    )
    return hf.MvpForConditionalGeneration(config)


def _deberta_v2() -> hf.PreTrainedModel:
    config = hf.DebertaV2Config(
        **_STACK,
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
    )
    return hf.DebertaV2ForMaskedLM(config)


_BUILDERS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED)),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**_GROUPED, sliding_window=WINDOW)
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**_GROUPED, sliding_window=WINDOW, query_pre_attn_scalar=16)
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **{**_GROUPED, "num_hidden_layers": 4},
            sliding_window=WINDOW,
            query_pre_attn_scalar=16,
            layer_types=[*["sliding_attention"] * 3, "full_attention"],
        )
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_GROUPED)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(
            **_GROUPED,
            **_MOE,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "gpt2": _gpt2,
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**_STACK, max_position_embeddings=64)
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(**{k: v for k, v in _GROUPED.items() if k != "head_dim"})
    ),
    "deepseek_v3": _deepseek_v3,
    "whisper": _whisper,
    "t5": _t5,
    "bart": _bart,
    "bert": lambda: hf.BertForMaskedLM(
        hf.BertConfig(**_STACK, max_position_embeddings=64)
    ),
    "vit": _vit,
    "llama4": lambda: hf.Llama4ForCausalLM(
        hf.Llama4TextConfig(
            **_GROUPED,
            **_MOE,
            intermediate_size_mlp=48,
            attention_chunk_size=WINDOW,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
        )
    ),
    "modernbert": lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(
            **_STACK,
            local_attention=2 * WINDOW,
            layer_types=["full_attention", "sliding_attention"],
            max_position_embeddings=64,
            cls_token_id=1,
            sep_token_id=2,
        )
    ),
    "falcon": _falcon,
    "falcon_eager": lambda: _falcon(attn_implementation="eager"),
    "falcon_alibi": lambda: _falcon(alibi=True, multi_query=False),
    "falcon_alibi_eager": lambda: _falcon(
        alibi=True, multi_query=False, attn_implementation="eager"
    ),
    "falcon_grouped": lambda: _falcon(
        new_decoder_architecture=True, num_kv_heads=N_KV_HEADS
    ),
    "falcon_grouped_eager": lambda: _falcon(
        new_decoder_architecture=True,
        num_kv_heads=N_KV_HEADS,
        attn_implementation="eager",
    ),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**_GPT, rotary_dim=4)),
    "codegen": lambda: hf.CodeGenForCausalLM(hf.CodeGenConfig(**_GPT, rotary_dim=4)),
    "gpt_neo": _gpt_neo,
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, **_TOKENS)
    ),
    "mpt": _mpt,
    "mvp": _mvp,
    "deberta_v2": _deberta_v2,
    "longformer": lambda: hf.LongformerForMaskedLM(
        hf.LongformerConfig(**_STACK, attention_window=4, max_position_embeddings=66)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(
            **_TOKENS, hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, state_size=4
        )
    ),
}

BY_HAND = [
    "falcon",
    "falcon_eager",
    "falcon_alibi",
    "falcon_alibi_eager",
    "falcon_grouped",
    "falcon_grouped_eager",
    "gptj",
    "codegen",
    "gpt_neo",
    "bloom",
    "mpt",
    "mvp",
    "deberta_v2",
]
"""Families that compute attention by themselves, seen in torch's functions."""
UNREACHABLE = ["longformer"]
"""Families whose attention is neither the interface's nor over whole rows."""
WITHOUT_ATTENTION = ["mamba"]
"""Families that have no attention at all."""
FAMILIES = [
    name
    for name in _BUILDERS
    if name not in {*BY_HAND, *UNREACHABLE, *WITHOUT_ATTENTION}
]
"""Families whose attention calls the attention interface."""
ENCODER_DECODERS = ["whisper", "t5", "bart"]
"""Families with an encoder stack, decoder self-attention and cross-attention."""


def tiny(name: str) -> tuple[hf.PreTrainedModel, dict[str, Tensor]]:
    """A fresh random model in eval mode, and inputs for one forward of a batch of two.

    Token inputs are `[2, 12]` without special tokens and without padding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _BUILDERS[name]().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module, _inputs(name)


def _inputs(name: str) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCAB, (2, N_TOKENS))
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 12, 12)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 10, 40), "decoder_input_ids": ids}
    if name in {*ENCODER_DECODERS, "mvp"}:
        source = torch.randint(3, VOCAB, (2, N_TOKENS + 5))
        return {"input_ids": source, "decoder_input_ids": ids}
    return {"input_ids": ids}


def tiny_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Whitespace words `w3` ... `w95` as ids 3 ... 95; ids 0 to 2 are special."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
