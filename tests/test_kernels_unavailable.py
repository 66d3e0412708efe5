"""Which implementation runs where, and what is said where one cannot."""

import subprocess
import sys
import textwrap
from copy import copy
from unittest import mock

import pytest
import torch
from attention_cases import make, moved
from triton_cases import DEVICE, needs_triton

from interp.kernels import availability, reweighting, statistics
from interp.kernels import definitions as d
from interp.kernels.errors import KernelUnavailableError
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall

PROGRAM = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
{before}
import torch
from interp.kernels.definitions import Entropy
from interp.kernels.errors import KernelUnavailableError
from interp.kernels.masks import MaskRule
from interp.kernels.reweight import Reweight
from interp.kernels.reweighting import reweighted
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.kernels.statistics import compute
tensors = [torch.randn(1, 1, 5, 8) for _ in range(3)]
call = AttentionCall(*tensors, ScoreRule(1.0), MaskRule.causal(5))
for door, asked in (compute, [Entropy()]), (reweighted, Reweight()):
    door(call, asked)
    try:
        door(call, asked, impl="triton")
    except KernelUnavailableError as error:
        sys.stdout.write(str(error) + os.linesep)
"""


def computed(call: AttentionCall) -> None:
    """The first door, asked for the GPU programs."""
    statistics.compute(call, [d.Lse()], impl="triton")


def reweighted(call: AttentionCall) -> None:
    """The second door, asked for the GPU programs."""
    reweighting.reweighted(call, Reweight(), "triton")


DOORS = pytest.mark.parametrize(
    ("door", "instead"), [(computed, "tiled"), (reweighted, "torch")]
)
"""Each door, and what it names where the GPU programs cannot run."""

CHOICES = pytest.mark.parametrize(
    ("choose", "instead"),
    [(statistics.choose, "tiled"), (reweighting.choose, "torch")],
)
"""What each door decides by, and the same."""


def messages(before: str = "") -> tuple[str, str]:
    """What a process without interpreter is told at both doors."""
    program = textwrap.dedent(PROGRAM).format(before=before)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    return first, second


@pytest.fixture
def fresh():
    """What is known of the installed Triton is forgotten before and after."""
    availability._triton_version.cache_clear()
    yield
    availability._triton_version.cache_clear()


@needs_triton
def test_tensors_of_the_cpu_are_told_what_to_use_instead():
    first, second = messages()
    assert "needs a GPU, these are on cpu" in first
    assert first.endswith("Use impl='tiled'.")
    assert second == first.replace("tiled", "torch")


def test_a_machine_without_triton_is_told_to_install_it_or_what_to_use_instead():
    first, second = messages("sys.modules['triton'] = None")
    assert "Triton cannot be imported" in first
    assert first.endswith("Install interp[triton], or use impl='tiled'.")
    assert second == first.replace("tiled", "torch")


@needs_triton
@DOORS
def test_an_old_triton_is_named(door, instead, monkeypatch, fresh):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.2.0")
    call = moved(make(7).call, DEVICE)
    said = rf"3\.2\.0 is older than 3\.4.*impl='{instead}'\.$"
    with pytest.raises(KernelUnavailableError, match=said):
        door(call)


@needs_triton
@DOORS
def test_double_precision_is_left_to_others(door, instead):
    call = moved(make(7, dtype=torch.float64).call, DEVICE)
    with pytest.raises(
        KernelUnavailableError, match=rf"these are float64\. Use impl='{instead}'\.$"
    ):
        door(call)
    assert statistics.choose("auto", call) != "triton"
    assert reweighting.choose("auto", call) == "torch"


def test_tensors_of_the_cpu_are_never_left_to_gpu_programs():
    for call in (make(7).call, make(7, 3000).call):
        assert statistics.choose("auto", call) in {"weighted", "tiled"}
        assert reweighting.choose("auto", call) == "torch"


def as_if_on_a_gpu() -> AttentionCall:
    """A call whose query says that it is where no device may be."""
    call = make(7).call
    query = mock.Mock(wraps=call.query, is_cuda=True, dtype=torch.float32)
    query.device, query.shape = torch.device("cuda:0"), call.query.shape
    other = copy(call)
    object.__setattr__(other, "query", query)
    return other


@needs_triton
@CHOICES
@pytest.mark.parametrize(
    ("capability", "is_used"), [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_a_gpu_is_used_from_ampere_on(
    choose, instead, capability, is_used, monkeypatch
):
    from triton import knobs

    # The device's answers stand in for devices that are not here.
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    call = as_if_on_a_gpu()
    assert choose("auto", call) == ("triton" if is_used else instead)
    if not is_used:
        said = rf"7\.5, not 8\.0.*impl='{instead}'\.$"
        with pytest.raises(KernelUnavailableError, match=said):
            choose("triton", call)


@needs_triton
@CHOICES
def test_a_machine_without_a_compiler_is_told_to_install_one(
    choose, instead, monkeypatch
):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    call = as_if_on_a_gpu()
    assert choose("auto", call) == instead
    said = rf"C compiler\. Install gcc, or use impl='{instead}'\.$"
    with pytest.raises(KernelUnavailableError, match=said):
        choose("triton", call)


@needs_triton
@DOORS
def test_memory_that_is_not_there_is_named(door, instead, monkeypatch):
    from interp.kernels import triton_launch

    def full(*_):
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total ..."
        )

    monkeypatch.setattr(triton_launch.Launcher, "stripes", full)
    call = moved(make(7).call, DEVICE)
    said = rf"2\.50 GiB.*7 queries.*Use impl='{instead}' or a shorter text\.$"
    with pytest.raises(KernelUnavailableError, match=said):
        door(call)


@needs_triton
@DOORS
def test_a_device_with_too_little_shared_memory_is_named(door, instead, monkeypatch):
    from triton.runtime.errors import OutOfResources

    from interp.kernels import triton_launch

    def full(*_):
        raise OutOfResources(200_000, 101_376, "shared memory")

    monkeypatch.setattr(triton_launch.Launcher, "stripes", full)
    call = moved(make(7).call, DEVICE)
    said = rf"200000 of shared .*Use impl='{instead}'\.$"
    with pytest.raises(KernelUnavailableError, match=said):
        door(call)
