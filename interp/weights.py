"""What a model's parameters hold: a fingerprint of them, and values that are no number.

Reads parameters and never changes them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import UnsupportedModelError

# They say where a model came from or how it runs, not what it computes.
_VOLATILE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
    "_attn_implementation",
}


def content_hash(module: PreTrainedModel) -> str:
    """SHA-256 over the class, the config, every parameter and persistent buffer.

    Covers each tensor's name, dtype, shape and all of its bytes, and the config without
    the model's origin and library version. So the same checkpoint loaded in another
    dtype has another hash, on another device or under another path the same one.

    Args:
        module: A transformers model; what accelerate has offloaded is read a module at
            a time.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnsupportedModelError: A tensor holds no values (device `meta`).
    """
    config = {
        key: value
        for key, value in module.config.to_dict().items()
        if key not in _VOLATILE
    }
    config["class"] = type(module).__name__
    total = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    state = sorted(module.state_dict().items())
    tensors = dict(state)
    here = [name for name, tensor in state if not tensor.is_meta]
    # Tensors are independent and hashlib lets other threads run.
    with ThreadPoolExecutor() as pool:
        found = pool.map(content_digest, (tensors[name] for name in here))
        digests = dict(zip(here, found, strict=True))
    for name, tensor in state:
        if tensor.is_meta:
            with _present(module, name) as values:
                digests[name] = content_digest(values)
        says = f"{name} {tensor.dtype} {tuple(tensor.shape)} {digests[name]}"
        total.update(says.encode())
    return total.hexdigest()


def nonfinite_parameters(module: nn.Module) -> dict[str, int]:
    """Parameters that hold NaN or infinity.

    Args:
        module: Any module.

    Returns:
        Qualified parameter name to the number of such values, in the module's order.
    """
    found: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.is_meta:
            with _present(module, name) as values:
                count = _nonfinite(values.detach())
        else:
            count = _nonfinite(parameter.detach())
        if count:
            found[name] = count
    return found


def layers_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group parameter names by layer.

    Returns:
        `layer 3` (the first number in the name), or the name's first parts where it has
        none, to the names.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        key = f"layer {number[1]}" if number else name.rpartition(".")[0] or name
        groups[key] = (*groups.get(key, ()), name)
    return groups


def _nonfinite(values: Tensor) -> int:
    if values.itemsize == 1:
        values = values.float()
    # One sum shows any NaN or infinity, many times faster than asking each value.
    # It may overflow without one, so the values decide.
    if values.sum(dtype=torch.float32).isfinite():
        return 0
    return int((~values.isfinite()).sum())


@contextmanager
def _present(module: nn.Module, name: str) -> Iterator[Tensor]:
    """A tensor that accelerate keeps elsewhere, brought here for a `with` block."""
    from accelerate.utils import align_module_device, has_offloaded_params

    owner, _, own = name.rpartition(".")
    home = module.get_submodule(owner)
    if not has_offloaded_params(home):
        raise UnsupportedModelError(
            f"the weights of the model are needed; {name} holds no values (device "
            "meta). Load the model with its weights."
        )
    with align_module_device(home, torch.device("cpu")):
        yield getattr(home, own)


def content_digest(tensor: Tensor) -> str:
    """SHA-256 of what a tensor of any type holds."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()
