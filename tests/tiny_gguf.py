"""A GGUF file of the tiny Llama, written as llama.cpp's converter writes one."""

from pathlib import Path

import gguf
import numpy as np
from tiny_models import VOCAB, tiny


def write_tiny_gguf(path: Path, without: str = "") -> None:
    """Write the tiny Llama to a GGUF file in float32, on demand less one tensor."""
    module, _ = tiny("llama")
    config = module.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCAB)
    words = ["<pad>", "<s>", "</s>", *(chr(33 + i) for i in range(VOCAB - 4)), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (VOCAB - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in module.state_dict().items():
        if name == without:
            continue
        values = tensor.numpy()
        if "q_proj" in name:
            values = _permuted(values, config.num_attention_heads)
        if "k_proj" in name:
            values = _permuted(values, config.num_key_value_heads)
        key = names.get_name(name, try_suffixes=(".weight",))
        assert key is not None
        writer.add_tensor(key, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows in the order that llama.cpp's rotary embedding expects."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)
