"""What a model's parameters hold: a fingerprint of them, and values that are no number.

Reads parameters and never changes them.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

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
        module: A transformers model whose tensors hold values (not on `meta`).

    Returns:
        64 hexadecimal digits.
    """
    config = {
        key: value
        for key, value in module.config.to_dict().items()
        if key not in _VOLATILE
    }
    config["class"] = type(module).__name__
    total = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    state = sorted(module.state_dict().items())
    # Tensors are independent and hashlib lets other threads run.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, (tensor for _, tensor in state))
        for (name, tensor), digest in zip(state, digests, strict=True):
            total.update(
                f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}".encode()
            )
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
        values = parameter.detach()
        if not values.is_floating_point() or values.is_meta:
            continue
        if values.itemsize == 1:
            values = values.float()
        # One sum shows any NaN or infinity, many times faster than asking each value.
        # It may overflow without one, so the values decide.
        if not values.sum(dtype=torch.float32).isfinite():
            count = int((~values.isfinite()).sum())
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


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()
