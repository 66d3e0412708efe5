"""CTranslate2 checkpoints of Whisper, as faster-whisper deploys them.

The file is little-endian: a version, the name of the model's kind, its revision, then
each variable with name, dimensions, type and data, then aliases. Weights packed as 8 or
16-bit integers come with a scale, by which they are divided.
"""

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.checkpoints.pretrained import refuse_missing, save
from interp.errors import InputError, UnsupportedModelError

FILE = "model.bin"
KIND = "WhisperSpec"
_VERSIONS = range(2, 8)
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}

# Parts of a layer: theirs, and what transformers calls them, one name for each of the
# matrices that lie on top of one another.
_SELF = {
    "linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "linear_1": ("self_attn.out_proj",),
    "layer_norm": ("self_attn_layer_norm",),
}
_CROSS = {
    "linear_0": ("encoder_attn.q_proj",),
    "linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "linear_2": ("encoder_attn.out_proj",),
    "layer_norm": ("encoder_attn_layer_norm",),
}
_FFN = {
    "linear_0": ("fc1",),
    "linear_1": ("fc2",),
    "layer_norm": ("final_layer_norm",),
}
_PARTS = {"self_attention": _SELF, "attention": _CROSS, "ffn": _FFN}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+)/(\w+)/(\w+)")
_OUTSIDE = {
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
    "encoder/conv1/weight": "encoder.conv1.weight",
    "encoder/conv1/bias": "encoder.conv1.bias",
    "encoder/conv2/weight": "encoder.conv2.weight",
    "encoder/conv2/bias": "encoder.conv2.bias",
    **{
        f"{stack}/{theirs}": f"{stack}.{ours}"
        for stack in ("encoder", "decoder")
        for theirs, ours in (
            ("position_encodings/encodings", "embed_positions.weight"),
            ("layer_norm/gamma", "layer_norm.weight"),
            ("layer_norm/beta", "layer_norm.bias"),
        )
    },
}


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a CTranslate2 model rather than a transformers one."""
    try:
        with (folder / FILE).open("rb") as file:
            return struct.unpack("<I", file.read(4))[0] in _VERSIONS
    except (OSError, struct.error):
        return False


def load(
    folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Whisper model of a folder, on the CPU, and its tokenizer.

    Args:
        folder: With model.bin and tokenizer.json; config.json says how to decode.
        dtype: Of the weights.

    Raises:
        InputError: model.bin is cut short or no CTranslate2 file, or there is no
            tokenizer.
        UnsupportedModelError: It is another kind of model, or lacks a weight.
    """
    path = folder / FILE
    kind, found = read(path)
    if kind != KIND:
        raise UnsupportedModelError(
            f"a Whisper model was to be read from {path}; it is a {kind}. Use the "
            "transformers form of that model."
        )
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"a tokenizer was to be read from {folder}; there is no tokenizer.json. "
            "Put the one of this Whisper model beside model.bin."
        )
    words = transformers.WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"))
    try:
        config = _config(found, words)
        module = transformers.WhisperForConditionalGeneration(config)
        state = dict(_renamed(found))
    except (KeyError, ValueError, IndexError) as error:
        raise UnsupportedModelError(
            f"a Whisper model was to be read from {path}; it has no {error}. Download "
            "it again."
        ) from error
    missing, _ = module.model.load_state_dict(state, strict=False)
    refuse_missing(module, {"missing_keys": missing, "mismatched_keys": []}, folder)
    module.tie_weights()
    module.generation_config = _decoding(folder, words, config)
    placed: Any = module
    return placed.to(dtype), words


def convert(folder: Path, out: Path, progress: Callable[[str], None]) -> None:
    """Write the model as a folder that `from_pretrained` reads, in float32.

    Raises:
        InputError: As in `load`.
        UnsupportedModelError: As in `load`.
    """
    progress(f"reading {FILE}")
    module, words = load(folder, torch.float32)
    progress(f"writing {FILE} as safetensors")
    save(module, words, out)
    extractor_of(module).save_pretrained(out)


def extractor_of(module: PreTrainedModel) -> Any:
    """What makes the model's features of sound."""
    return transformers.WhisperFeatureExtractor(feature_size=module.config.num_mel_bins)


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind of a CTranslate2 model, and its variables by name, unpacked.

    Raises:
        InputError: The file is cut short, or no CTranslate2 file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _Reader(file, size).model()
        except (EOFError, struct.error):
            raise InputError(
                f"a CTranslate2 model was to be read; {path} holds {size:,} bytes and "
                "ends within a variable. Download it again."
            ) from None
        except (KeyError, ValueError, UnicodeDecodeError) as error:
            raise InputError(
                f"a CTranslate2 model was to be read; {path} holds what none does "
                f"({error}). Download it again."
            ) from None


class _Reader:
    """Walks a file without ever reading past its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def model(self) -> tuple[str, dict[str, Tensor]]:
        version = self.number("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        kind, _ = self.string(), self.number("I")
        if not kind.isidentifier():
            raise ValueError(f"a kind named {kind!r}")
        raw = dict(self.variable() for _ in range(self.number("I")))
        for _ in range(self.number("I")):
            alias, target = self.string(), self.string()
            raw[alias] = raw[target]
        found = {}
        for name, values in raw.items():
            scale = raw.get(f"{name}_scale")
            if scale is not None and np.issubdtype(values.dtype, np.integer):
                rows = scale.reshape(-1, *[1] * (values.ndim - 1))
                values = values.astype(np.float32) / rows
            elif np.issubdtype(values.dtype, np.floating):
                values = values.astype(np.float32)
            found[name] = torch.tensor(values)
        return kind, found

    def variable(self) -> tuple[str, np.ndarray]:
        name = self.string()
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind = np.dtype(_TYPES[self.number("B")])
        n_bytes = self.number("I")
        if n_bytes != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{n_bytes} bytes for {name} of shape {shape}")
        return name, np.frombuffer(self.bytes(n_bytes), kind).reshape(shape)

    def string(self) -> str:
        return self.bytes(self.number("H"))[:-1].decode("utf-8")

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def bytes(self, count: int) -> bytes:
        if self.file.tell() + count > self.size:
            raise EOFError
        return self.file.read(count)


def _renamed(found: dict[str, Tensor]) -> Any:
    """Each weight under the name that transformers gives it."""
    for name, values in found.items():
        if name in _OUTSIDE:
            yield _OUTSIDE[name], values
        match = _LAYER.fullmatch(name)
        if match is None or match[5] not in _KINDS:
            continue
        stack, layer, part, piece, kind = match.groups()
        names = _PARTS[part][piece]
        for ours, own in zip(names, values.chunk(len(names)), strict=True):
            # Whisper's keys have no bias; the file fills it with zeros.
            if not (ours.endswith("k_proj") and kind == "bias"):
                yield f"{stack}.layers.{layer}.{ours}.{_KINDS[kind]}", own


def _config(
    found: dict[str, Tensor], words: PreTrainedTokenizerBase
) -> transformers.WhisperConfig:
    """What the shapes of the weights say."""

    def layers(stack: str) -> int:
        matches = (_LAYER.fullmatch(name) for name in found)
        return 1 + max(int(m[2]) for m in matches if m and m[1] == stack)

    n_vocab, d_model = found["decoder/embeddings/weight"].shape
    end, start = (
        int(words.convert_tokens_to_ids(token))  # type: ignore[arg-type]
        for token in ("<|endoftext|>", "<|startoftranscript|>")
    )
    return transformers.WhisperConfig(
        vocab_size=n_vocab,
        d_model=d_model,
        num_mel_bins=found["encoder/conv1/weight"].shape[1],
        max_source_positions=len(found["encoder/position_encodings/encodings"]),
        max_target_positions=len(found["decoder/position_encodings/encodings"]),
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        encoder_attention_heads=int(found["encoder/num_heads"]),
        decoder_attention_heads=int(found["decoder/num_heads"]),
        encoder_ffn_dim=len(found["encoder/layer_0/ffn/linear_0/weight"]),
        decoder_ffn_dim=len(found["decoder/layer_0/ffn/linear_0/weight"]),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
    )


def _decoding(
    folder: Path, words: PreTrainedTokenizerBase, config: transformers.WhisperConfig
) -> transformers.GenerationConfig:
    """How Whisper decodes: languages, tasks, and the tokens it must not say."""
    path = folder / "config.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    vocabulary = words.get_vocab()
    languages = {
        token: vocabulary[token]
        for token in vocabulary
        if vocabulary[token] in told.get("lang_ids", ())
    }
    tasks = ("translate", "transcribe")
    known = {name: vocabulary.get(f"<|{name}|>") for name in tasks}
    options = {
        "alignment_heads": told.get("alignment_heads"),
        "suppress_tokens": told.get("suppress_ids"),
        "begin_suppress_tokens": told.get("suppress_ids_begin"),
        "lang_to_id": languages,
        "task_to_id": known,
        "is_multilingual": len(languages) > 1,
        "no_timestamps_token_id": vocabulary.get("<|notimestamps|>"),
        "prev_sot_token_id": vocabulary.get("<|startofprev|>"),
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
        "max_length": config.max_target_positions,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
    }
    return transformers.GenerationConfig(
        **{name: value for name, value in options.items() if value is not None}
    )
