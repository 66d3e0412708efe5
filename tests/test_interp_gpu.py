"""Traces on a CUDA device: those of the CPU, and no wait between the layers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
import torch
import xarray as xr
from tiny_gradients import gradients
from tiny_models import tiny
from tolerance import assert_as_precise
from torch import Tensor

import interp
from interp.heads import HeadSet
from interp.interventions.sinks import Temperature
from interp.masks import lazy_mask
from interp.recording import Progress
from interp.tap import tap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYERS = {"llama": 2, "gemma3": 4, "qwen3": 2, "gpt2": 2}
"""Families whose own forward does not wait for the device, and their layers."""


@contextmanager
def no_waiting() -> Iterator[Progress]:
    """Makes a wait for the device, from the first attention call to the last, fail."""

    def progress(done: int, total: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if done < total else "default")

    try:
        yield progress
    finally:
        torch.cuda.set_sync_debug_mode("default")


def inputs_of(name: str, padding: str) -> dict[str, Tensor]:
    inputs = tiny(name)[1]
    if padding == "one text":
        return {"input_ids": inputs["input_ids"][:1]}
    mask = torch.ones_like(inputs["input_ids"])
    if padding != "none":
        mask[1, slice(0, 4) if padding == "left" else slice(8, None)] = 0
    return inputs | {"attention_mask": mask}


def same(ours: xr.DataTree, truth: xr.DataTree, *eager: xr.DataTree) -> None:
    """Every array is as precise as traces of the CPU; indices are equal."""
    assert set(ours.children) == set(truth.children)
    for node in truth.children:
        assert set(ours[node].data_vars) == set(truth[node].data_vars)
        for name, wanted in truth[node].data_vars.items():
            found, *twins = (
                torch.from_numpy(trace[node][name].values) for trace in (ours, *eager)
            )
            if found.is_floating_point():
                wanted = torch.from_numpy(wanted.values)
                assert_as_precise(found, wanted, *twins, name=f"{node} {name}")
            else:
                assert found.tolist() == wanted.values.tolist(), f"{node} {name}"


@pytest.mark.parametrize("padding", ["none", "one text", "left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_trace_on_the_device_is_that_of_the_cpu(name, padding):
    inputs = inputs_of(name, padding)
    truth = interp.trace(tiny(name)[0].double(), inputs)
    eager = [
        interp.trace(tiny(name)[0], inputs, impl=impl)
        for impl in ("reference", "tiled", "weighted")
    ]
    # The device sums in another order, in the model's own products as well.
    eager.append(interp.trace(tiny(name)[0].cuda(), inputs, impl="tiled"))
    with no_waiting() as progress:
        ours = interp.trace(tiny(name)[0].cuda(), inputs, progress=progress)
    assert ours.attrs["device"].startswith("cuda")
    same(ours, truth, *eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_no_layer_waits_for_the_device(name, dtype):
    module = tiny(name)[0].to("cuda", dtype)
    with no_waiting() as progress:
        trace = interp.trace(module, inputs_of(name, "none"), progress=progress)
    for node, n_layers in (("self", LAYERS[name]), ("residual", LAYERS[name] + 1)):
        lse_or_norm = trace[node]["lse" if node == "self" else "norm"]
        assert lse_or_norm.sizes["layer"] == n_layers
        assert lse_or_norm.notnull().all()


@pytest.mark.parametrize("after", [1, 2, 3])
def test_layers_that_were_done_are_stored_when_a_run_is_interrupted(tmp_path, after):
    module, path = tiny("gemma3")[0].cuda(), tmp_path / "t.zarr"

    def progress(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    ids = tiny("gemma3")[1]["input_ids"]
    with pytest.raises(KeyboardInterrupt):
        interp.trace(module, ids, out=path, progress=progress)
    entropy = interp.open_trace(path)["self"]["entropy"]
    assert entropy.isel(layer=slice(0, after)).notnull().all()
    assert entropy.isel(layer=slice(after, None)).isnull().all()
    whole = interp.trace(module, ids, out=path)
    assert whole["self"]["entropy"].notnull().all()


def test_a_function_that_reads_tensors_of_the_device_keeps_its_band():
    from transformers import masking_utils as hf

    starts = torch.tensor([0, 3], device="cuda")
    chunks = hf.and_masks(hf.chunked_overlay(5, starts), hf.causal_mask_function)
    rule = lazy_mask(2, 23, 23, mask_function=chunks, device=torch.device("cuda"))
    assert (rule.ahead, rule.behind) == (0, None)
    assert rule.function is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "t5", "whisper"])
def test_gradients_on_the_device_are_those_of_the_cpu(name, edited, dtype):
    def slopes(
        dtype: torch.dtype, device: str, watched: bool = False, nudge: float = 0.0
    ) -> dict[str, Tensor]:
        module, inputs = tiny(name)
        model = interp.load(module.to(device, dtype))
        with torch.no_grad():
            for weight in module.parameters():
                weight *= 1 + nudge * torch.finfo(dtype).eps
        own = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        with ExitStack() as within:
            if edited:
                some = HeadSet.parse("L0.H1", model.anatomy)
                within.enter_context(Temperature(some, 2.0)(model))
            watch = tap(module, lambda visit: None) if watched else nullcontext()
            return gradients(module, own, watch)

    truth = slopes(torch.float64, "cpu")
    twins = [
        slopes(dtype, device, nudge=nudge)
        for device in ("cpu", "cuda")
        for nudge in (-1, 0, 1)
    ]
    for part, slope in slopes(dtype, "cuda", True).items():
        eager = [twin[part].cpu() for twin in twins]
        assert_as_precise(slope.cpu(), truth[part], *eager, name=part)
