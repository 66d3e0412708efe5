"""Whether the GPU programs can take a call, and what is said where they cannot."""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from interp.kernels.errors import KernelUnavailableError
from interp.kernels.rules import AttentionCall

OLDEST_TRITON = (3, 4)
"""The first release with tensor descriptors that are made on the host."""

OLDEST_GPU = (8, 0)
"""Compute capability of Ampere, the first with bfloat16."""


def suits_triton(call: AttentionCall) -> bool:
    """Whether "auto" leaves a call to the GPU programs."""
    return call.query.is_cuda and _against_triton(call, "") is None


def require(
    impl: str, known: Collection[str], call: AttentionCall, instead: str
) -> None:
    """Refuse an implementation that cannot take a call.

    Args:
        impl: The name that was asked for.
        known: Names of those that there are.
        call: What it is asked to do.
        instead: The one to name where the GPU programs cannot run.

    Raises:
        KernelUnavailableError: There is none of that name, or it cannot run here.
    """
    if impl not in known:
        raise KernelUnavailableError(
            f"No implementation is called {impl!r}. Choose one of "
            f"{', '.join(['auto', *known])}."
        )
    obstacle = _against_triton(call, instead) if impl == "triton" else None
    if obstacle is not None:
        raise KernelUnavailableError(f"impl='triton' was asked for; {obstacle}")


@contextmanager
def within_limits(call: AttentionCall, instead: str) -> Iterator[None]:
    """While the GPU programs work on a call: says what the device has too little of.

    Raises:
        KernelUnavailableError: Its memory is full, or its cores are too small.
    """
    from triton.runtime.errors import OutOfResources  # not every machine has Triton

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        room = asked[1] if asked else "memory"
        raise KernelUnavailableError(
            f"impl='triton' asked {call.query.device} for {room} more, which is not "
            f"free, with {call.n_heads} heads, {call.mask.query_length} queries and "
            f"{call.mask.key_length} keys. Use impl='{instead}' or a shorter text."
        ) from error
    except OutOfResources as error:
        raise KernelUnavailableError(
            f"impl='triton' needs {error.required} of {error.name} for heads of width "
            f"{call.query.shape[-1]}, {call.query.device} has {error.limit}. Use "
            f"impl='{instead}'."
        ) from error


def _against_triton(call: AttentionCall, instead: str) -> str | None:
    """Why the GPU programs cannot take a call, and what to do; None if they can."""
    device, other = call.query.device, f"impl='{instead}'"
    if call.query.dtype == torch.float64:
        return f"it computes in float32, these are float64. Use {other}."
    found = _triton_version()
    if isinstance(found, str):
        return f"{found} Install interp[triton], or use {other}."
    from triton import knobs

    if knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"it needs a GPU, these are on {device.type}. Use {other}."
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        have, need = (".".join(map(str, c)) for c in (capability, OLDEST_GPU))
        return f"{device} has compute capability {have}, not {need}. Use {other}."
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return f"Triton needs a C compiler. Install gcc, or use {other}."
    return None


@cache
def _triton_version() -> tuple[int, int] | str:
    """Release of the installed Triton, or what keeps it from being used."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported here ({error})."
    major, minor = re.findall(r"\d+", triton.__version__)[:2]
    release = int(major), int(minor)
    if release < OLDEST_TRITON:
        need = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {triton.__version__} is older than {need}."
    return release
