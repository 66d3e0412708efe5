"""Folders and hub models that `from_pretrained` reads, each refused with one reason."""

import inspect
import pickle
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.errors import InputError, UnsupportedModelError

_FEATURES = {"input_features", "input_values", "pixel_values"}
_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)


def load(
    source: str | Path, dtype: torch.dtype | str, trust_remote_code: bool
) -> PreTrainedModel:
    """Read a folder or a hub model, on the CPU.

    Raises:
        UnsupportedModelError: It cannot be reached or read, or lacks a weight.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if isinstance(source, str) and not _hub_answers():
        options["local_files_only"] = True
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        kind = _model_class(config)
        module, info = kind.from_pretrained(
            source, dtype=dtype, weights_only=True, output_loading_info=True, **options
        )
    except ImportError as error:
        said = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"a model was to be loaded from {source}; how its weights are stored needs "
            f"another package ({said[:300]}). Install that, or load a checkpoint that "
            "is not quantized."
        ) from error
    except (
        *(OSError, ValueError, KeyError, RuntimeError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as error:
        said = " ".join(str(error).split())
        if isinstance(source, str):
            raise UnsupportedModelError(
                f"the hub model '{source}' was asked for; it cannot be read "
                f"({said[:300]}). Check the name and the connection, or load a folder, "
                "a .gguf file or a catalog model such as smollm2-135m."
            ) from error
        raise UnsupportedModelError(
            f"a model was to be loaded from the folder {source}; transformers cannot "
            f"read it ({said[:300]}). Download it again, or save it with this version "
            "of transformers."
        ) from error
    refuse_missing(module, info, source)
    return module


def save(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a model as a folder that `load` reads."""
    # Tied weights are one tensor under two names; the file holds the first.
    tensors = {
        tensor.data_ptr(): (name, tensor)
        for name, tensor in reversed(module.state_dict().items())
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.values()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(folder)
    if module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def refuse_missing(
    module: PreTrainedModel, info: dict[str, Any], source: str | Path
) -> None:
    """Refuse a checkpoint that leaves weights to be made up at random.

    Args:
        module: The model as loaded.
        info: What `from_pretrained` reports with `output_loading_info`.
        source: Where it was loaded from, for the message.

    Raises:
        UnsupportedModelError: A weight is missing or has another shape.
    """
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise UnsupportedModelError(
            f"every weight of {type(module).__name__} was to be loaded; {source} lacks "
            f"{len(missing)} of them ({', '.join(missing[:3])}). Random ones would "
            "stand in their place, so download it again."
        )


def _model_class(config: Any) -> Any:
    """The class that a checkpoint's config names, else the first that takes it."""
    names = config.architectures or ()
    custom = getattr(config, "auto_map", None) or {}
    for name in (*names, *(each for each in _AUTO_CLASSES if each in custom)):
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if name == "AutoModelForCausalLM" and config.is_encoder_decoder:
            continue  # half of the model
        if not names and type(config) in auto._model_mapping:
            return auto
    raise ValueError(f"no model class for {config.model_type}, {', '.join(names)}")


def load_tokenizer(
    given: PreTrainedTokenizerBase | str | Path | None,
    source: str | Path | None,
    trust_remote_code: bool,
) -> PreTrainedTokenizerBase | None:
    """The tokenizer asked for; without a request the one beside the model, if any.

    Raises:
        InputError: The one asked for, or one that is there, cannot be read.
    """
    if given is not None and not isinstance(given, str | Path):
        return given
    where = given if given is not None else source
    if where is None:
        return None
    offline = isinstance(where, str) and not Path(where).exists() and not _hub_answers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            where, trust_remote_code=trust_remote_code, local_files_only=offline
        )
        if _knows_words(tokenizer):
            return tokenizer
        raise ValueError("its vocabulary is empty")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if given is None and not any(Path(where).glob("*token*")):
            return None
        raise InputError(
            f"a tokenizer was to be read from {where}; there is none that can be read "
            f"({' '.join(str(error).split())[:200]}). Pass another with tokenizer=..., "
            "a tokenizer or a folder that holds tokenizer.json."
        ) from error


def load_extractor(
    module: PreTrainedModel, source: str | Path, trust_remote_code: bool
) -> Any:
    """What makes features of sound or images, where the model reads them."""
    if not _FEATURES & set(inspect.signature(module.forward).parameters):
        return None
    offline = not Path(source).exists() and not _hub_answers()
    try:
        return transformers.AutoFeatureExtractor.from_pretrained(
            source, trust_remote_code=trust_remote_code, local_files_only=offline
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return None  # it can still be given features that are ready


def _knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """False for the empty tokenizer that transformers makes up where there is none."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return len(set(tokenizer.get_vocab().values()) - special) > 1


def _hub_answers() -> bool:
    """Whether the hub's name resolves; without it every request waits 20 s to fail."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True
