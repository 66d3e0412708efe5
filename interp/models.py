"""Loading a model, from wherever it is, into one value that says what it is."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp import catalog
from interp.adapters import nnsight, transformer_lens
from interp.anatomy import Anatomy
from interp.checkpoints import ctranslate2, gguf, pretrained
from interp.errors import InputError, UnsupportedModelError
from interp.weights import content_hash, layers_of, nonfinite_parameters

__all__ = ["Model", "load", "nonfinite_parameters"]

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Model:
    """A transformers model with its tokenizer and its identity.

    Attributes:
        module: The model itself.
        tokenizer: Turns text into token ids; None where there is none.
        name: As it was asked for; a local model by the name of its file or folder.
        content_hash: SHA-256 of config and weights, see `interp.weights`.
        anatomy: Its layers, heads and sites.
        extractor: Makes features of sound or images; None for models of text.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    content_hash: str
    anatomy: Anatomy
    extractor: Any = None

    @property
    def device(self) -> torch.device:
        """Where inputs go: to the first parameter; to the CPU if it is not here."""
        place = next(self.module.parameters()).device
        return torch.device("cpu") if place.type == "meta" else place

    @property
    def dtype(self) -> torch.dtype:
        """Type of the floating-point parameters."""
        return self.module.dtype

    @property
    def max_tokens(self) -> int | None:
        """Context length in tokens, or None without a limit."""
        return self.anatomy.max_positions


def load(
    ref: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Load a model for inference, or wrap one that is already loaded.

    Args:
        ref: A catalog name, a local folder (of transformers, or of a Whisper model
            for CTranslate2), a `.gguf` file, a hub id, a transformers
            model (used as it is, never changed), one that nnsight or TransformerLens
            has wrapped (likewise), or a `Model` (returned as it is).
        tokenizer: Tokenizer, or where to read it, if not beside the model.
        device: `auto` takes the first CUDA device, else the CPU.
        dtype: Name or torch type of the weights. By default float32 on a CPU, and on
            a GPU the checkpoint's own.
        trust_remote_code: Let a hub model or folder run the code that it brings.
        allow_nonfinite: Accept weights that hold NaN or infinity.
        progress: Told each step in a few words.

    Returns:
        The model in eval mode.

    Raises:
        InputError: No such file or name, a broken file, or an option that has no
            meaning here.
        UnsupportedModelError: What is there is no model that can be used.
        StorageError: A catalog model cannot be fetched or kept.
    """
    if isinstance(ref, Model):
        return ref
    if transformer_lens.is_bridge(ref):
        bridge: Any = ref
        ref = transformer_lens.original_model(bridge)
        with transformer_lens.unbridged(ref):
            options = {"tokenizer": tokenizer or bridge.tokenizer, "device": device}
            return load(ref, **options, dtype=dtype, allow_nonfinite=allow_nonfinite)
    if nnsight.is_wrapper(ref):
        tokenizer = tokenizer or getattr(ref, "tokenizer", None)
        ref = nnsight.wrapped_model(ref)
    tell = progress or (lambda message: None)
    if isinstance(ref, nn.Module):
        if device != "auto" or dtype is not None:
            raise InputError(
                f"device={device}, dtype={dtype} was asked for a model that is already "
                "loaded, which is never changed. Move it before, with model.to(...)."
            )
        loaded = _usable(ref)
        name = getattr(loaded.config, "_name_or_path", "") or type(loaded).__name__
        words = pretrained.load_tokenizer(tokenizer, None, trust_remote_code)
        return _model(loaded, words, name, allow_nonfinite, tell)

    module: Any
    extractor: Any = None
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    with quiet():
        source, name = _locate(ref, tell)
        tell(f"loading {name}")
        if isinstance(source, Path) and source.is_file():
            module, words = gguf.load(source, torch.float32 if kind == "auto" else kind)
        elif isinstance(source, Path) and ctranslate2.is_checkpoint(source):
            stored = torch.float32 if kind == "auto" else kind
            module, words = ctranslate2.load(source, stored)
            extractor = ctranslate2.extractor_of(module)
        else:
            module = pretrained.load(source, kind, trust_remote_code)
            words = None
            extractor = pretrained.load_extractor(module, source, trust_remote_code)
        if tokenizer is not None or words is None:
            words = pretrained.load_tokenizer(tokenizer, source, trust_remote_code)
        if not getattr(module, "is_quantized", False):  # those lie where they were put
            module.to(place)
        module.eval()
    return _model(module, words, name, allow_nonfinite, tell, extractor)


def _model(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    allow_nonfinite: bool,
    tell: Progress,
    extractor: Any = None,
) -> Model:
    tell(f"checking {name}")
    broken = {} if allow_nonfinite else nonfinite_parameters(module)
    if broken:
        layers = layers_of(broken)
        where = "; ".join(
            f"{layer}: {', '.join(f'{n} ({broken[n]:,} values)' for n in names)}"
            for layer, names in list(layers.items())[:5]
        )
        more = f"; and {len(layers) - 5} more layers" if len(layers) > 5 else ""
        raise UnsupportedModelError(
            f"weights that are numbers are needed; {name} holds NaN or infinity in "
            f"{where}{more}. Get the weights again, or pass allow_nonfinite=True."
        )
    digest, anatomy = content_hash(module), Anatomy.of(module)
    return Model(module, tokenizer, name, digest, anatomy, extractor)


def _locate(ref: str | Path, tell: Progress) -> tuple[str | Path, str]:
    """What a reference means: a local path or a hub id, and the model's name."""
    text = str(ref)
    if isinstance(ref, str) and any(ref == each.name for each in catalog.models()):
        return catalog.fetch(ref, tell), ref
    path = Path(ref).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"a model was to be loaded from {text}, a file that is not named "
                ".gguf. Name a .gguf file, or the folder with config.json and weights."
            )
        return path, path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = ", ".join(sorted(each.name for each in path.iterdir())[:4])
            raise UnsupportedModelError(
                f"a model was to be loaded from the folder {text}, which has no "
                f"config.json (it holds {inside or 'nothing'}). Name the folder that "
                "holds config.json and weights, or a .gguf file."
            )
        return path, path.resolve().name
    if isinstance(ref, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", ref):
        looks_like_path = True
    else:
        looks_like_path = ref[0] in ".~" or path.suffix in {".gguf", ".safetensors"}
    if looks_like_path:
        raise InputError(
            f"a model was to be loaded from {text}; there is no such file or folder. "
            "Check the path."
        )
    near = catalog.nearest(text)
    if near is not None:
        raise InputError(
            f"a model '{text}' was asked for; no folder and no catalog model has that "
            f"name. Did you mean '{near}'?"
        )
    return text, text


def _usable(module: nn.Module) -> PreTrainedModel:
    module = getattr(module, "_orig_mod", module)  # what torch.compile has wrapped
    if not isinstance(module, PreTrainedModel):
        raise UnsupportedModelError(
            "a transformers model (PreTrainedModel) was expected; got "
            f"{type(module).__module__}.{type(module).__name__}. Pass the transformers "
            "model that it wraps."
        )
    if module.training:
        raise InputError(
            f"a model in eval mode was expected; this {type(module).__name__} is in "
            "training mode, where dropout changes every run. Call model.eval() first."
        )
    return module


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise InputError(
            f"the device '{device}' was asked for; this machine has "
            f"{', '.join(usable)}. Choose one of them, or 'auto'."
        ) from error
    return place


def resolve_dtype(dtype: str | torch.dtype | None, place: torch.device) -> Any:
    """A floating-point type, or `auto` for the checkpoint's own."""
    if dtype is None:
        return torch.float32 if place.type == "cpu" else "auto"
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype == "auto":
        return dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise InputError(
            f"weights of type '{dtype}' were asked for, which is no floating-point "
            "type. Choose float32, bfloat16, float16, float64 or auto."
        )
    return kind


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and notices of transformers off the screen meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
