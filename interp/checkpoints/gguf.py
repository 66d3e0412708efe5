"""GGUF files: checked against their own header first, then read by transformers."""

import importlib
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch
import transformers
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.checkpoints.pretrained import refuse_missing, save
from interp.errors import InputError, UnsupportedModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# Byte widths of the scalar kinds that metadata values and array elements may have.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        architecture: llama.cpp's name of the family.
        n_tensors: Tensors in the file.
        size_bytes: Bytes that the file must hold for the last of them.
    """

    architecture: str
    n_tensors: int
    size_bytes: int


def read_header(path: Path) -> Header:
    """Read the header and hold the file's size against it; no tensor is read.

    Raises:
        InputError: The file is no GGUF file, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != MAGIC:
            raise InputError(
                f"a GGUF file was to be read; {path} starts with {magic!r} instead of "
                f"{MAGIC!r}. Name a .gguf file, or the folder of another format."
            )
        try:
            header = _Reader(file, size).header()
        except (EOFError, struct.error):
            raise InputError(
                f"a GGUF file was to be read; {path} holds {size:,} bytes and ends "
                "within its header. Download it again."
            ) from None
        except (KeyError, ValueError, OverflowError) as error:
            raise InputError(
                f"a GGUF file was to be read; the header of {path} holds what no GGUF "
                f"header does ({error}). Download it again."
            ) from None
    if size < header.size_bytes:
        raise InputError(
            f"a GGUF file was to be read; {path} holds {size:,} bytes, its header "
            f"promises {header.size_bytes:,}. Download it again."
        )
    return header


def load(
    path: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The dequantized model, on the CPU, and its tokenizer.

    Raises:
        InputError: The file is no GGUF file, or is cut short.
        UnsupportedModelError: transformers cannot read this architecture, or the file
            lacks a weight.
    """
    header = read_header(path)
    options: dict[str, Any] = {"gguf_file": path.name}
    reader: Any = transformers.AutoModelForCausalLM
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
        # Versions that can keep the weights packed must be told not to.
        if hasattr(transformers, "GgufConfig"):
            config = transformers.GgufConfig(dequantize=True)
            options["quantization_config"] = config
        with _without_bar():
            module, info = reader.from_pretrained(
                path.parent, dtype=dtype, output_loading_info=True, **options
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"the model in {path.name} was to be read; transformers cannot read its "
            f"architecture '{header.architecture}' ({' '.join(str(error).split())}). "
            "Use the safetensors form of the model."
        ) from error
    refuse_missing(module, info, path)
    # The weights are plain tensors now; what still says "quantized" would only stand
    # in the way of casting and saving.
    module.config.architectures = [type(module).__name__]
    for holder, name in (
        (module.config, "quantization_config"),
        (module.config, "_model_name_or_path"),
        (module, "hf_quantizer"),
        (module, "quantization_method"),
        (module, "is_quantized"),
    ):
        with suppress(AttributeError):
            delattr(holder, name)
    return module, tokenizer


def convert(path: Path, folder: Path, progress: Callable[[str], None]) -> None:
    """Write the dequantized model as a folder that `from_pretrained` reads, in float32.

    Raises:
        InputError: The file is no GGUF file, or is cut short.
        UnsupportedModelError: transformers cannot read this architecture, or the file
            lacks a weight.
    """
    progress(f"reading {path.name}")
    module, tokenizer = load(path, torch.float32)
    progress(f"writing {path.name} as safetensors")
    save(module, tokenizer, folder)


@contextmanager
def _without_bar() -> Iterator[None]:
    """Keep a bar away that transformers draws whatever its own setting says."""
    name = "transformers.modeling_gguf_pytorch_utils"
    reader: Any = importlib.import_module(name) if find_spec(name) else None
    if not hasattr(reader, "tqdm"):
        yield
        return
    bar = reader.tqdm
    reader.tqdm = lambda values, **options: values
    try:
        yield
    finally:
        reader.tqdm = bar


class _Reader:
    """Walks a GGUF header without ever reading past the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def header(self) -> Header:
        version = self.number("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        n_tensors, n_values = self.number("Q"), self.number("Q")
        kept: dict[str, Any] = {}
        for _ in range(n_values):
            key, kind = self.string(), self.number("I")
            if key == "general.architecture" and kind == _STRING:
                kept[key] = self.string()
            elif key == "general.alignment" and kind == 4:
                kept[key] = self.number("I")
            else:
                self.skip_value(kind)
        ends = [self.tensor_end() for _ in range(n_tensors)]
        alignment = kept.get("general.alignment", _ALIGNMENT)
        start = math.ceil(self.file.tell() / alignment) * alignment
        return Header(
            architecture=kept["general.architecture"],
            n_tensors=n_tensors,
            size_bytes=start + max(ends, default=0),
        )

    def tensor_end(self) -> int:
        self.string()
        dims = [self.number("Q") for _ in range(self.number("I"))]
        kind = GGMLQuantizationType(self.number("I"))
        n_values, n_bytes = GGML_QUANT_SIZES[kind]
        return self.number("Q") + math.prod(dims) // n_values * n_bytes

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _ARRAY:
            element, length = self.number("I"), self.number("Q")
            if element in _WIDTHS:
                self.skip(length * _WIDTHS[element])
            else:
                for _ in range(length):
                    self.skip_value(element)
        else:
            self.skip(_WIDTHS[kind])

    def string(self) -> str:
        length = self.number("Q")
        if self.file.tell() + length > self.size:
            raise EOFError
        return self.file.read(length).decode("utf-8", "replace")

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.file.read(struct.calcsize(code)))[0]

    def skip(self, n_bytes: int) -> None:
        if self.file.tell() + n_bytes > self.size:
            raise EOFError
        self.file.seek(n_bytes, 1)
