"""Every family's trace against its own eager attention, in float64."""

from typing import Any

import pytest
import torch
import xarray as xr
from dense import Dense
from tiny_models import FAMILIES, tiny
from tolerance import assert_as_precise
from torch import Tensor

import interp
from interp.capture import Capture, TokenEdges
from interp.kernels.definitions import COLUMNS, ROWS, BlockMap, Pattern
from interp.tap import tap

CAPTURE = Capture((*ROWS, *COLUMNS, BlockMap(4), Pattern()), TokenEdges(), True)

SLACK = 5e-6
"""What rounding in earlier layers moves weights by, whichever kernel makes them."""

UNTOLD = {"lse", "learned_sink", "max_key", "edges"}
"""What eager maps do not tell, or only up to ties: tested on their own."""

ATTENTIONS = {
    "self": ("decoder_attentions", "attentions"),
    "cross": ("cross_attentions",),
    "encoder": ("encoder_attentions", "attentions"),
}


def eager_maps(name: str, inputs: dict[str, Tensor], dtype: torch.dtype) -> Any:
    model = tiny(name)[0].to(dtype)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # grouped products know no float64
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    with torch.no_grad():
        return model(**inputs, output_attentions=True, use_cache=False)


def maps_of(outputs: Any, site: str) -> list[Tensor]:
    for field in ATTENTIONS[site]:
        maps = outputs.get(field)
        if maps:
            return list(maps)
    raise AssertionError(f"{field} has no maps")


def arrays_of(p: Tensor) -> dict[str, Tensor]:
    n_query, n_key = p.shape[1:]
    distance = torch.arange(n_query)[:, None] - torch.arange(n_key)
    dense = Dense(p, p > 0, p.sum(-1), distance, torch.arange(n_key))
    return dense.arrays(size=4)


def alone(inputs: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    """One sample without its padding."""
    real = inputs.get("attention_mask")
    one = {k: v[sample : sample + 1] for k, v in inputs.items() if "mask" not in k}
    if real is not None:
        one["input_ids"] = one["input_ids"][:, real[sample].bool()]
    return one


def compare(name: str, inputs: dict[str, Tensor]) -> None:
    """A batch's trace with each of its texts alone, in float64."""
    trace = interp.trace(tiny(name)[0], inputs, capture=CAPTURE)
    sites = [site for site in ATTENTIONS if site in trace.children]
    assert sites
    for sample in range(len(next(iter(inputs.values())))):
        own = alone(inputs, sample)
        exact = eager_maps(name, own, torch.float64)
        eager = eager_maps(name, own, torch.float32)
        for site in sites:
            maps = zip(maps_of(exact, site), maps_of(eager, site), strict=True)
            for layer, (truth, twin) in enumerate(maps):
                node = trace[site].to_dataset().sel(sample=sample, layer=layer)
                where = f"{name} {site} L{layer}"
                compare_layer(node, arrays_of(truth[0]), arrays_of(twin[0]), where)


def compare_layer(
    node: xr.Dataset, truth: dict[str, Tensor], twin: dict[str, Tensor], where: str
) -> None:
    for array in set(node.data_vars) - UNTOLD:
        ours = torch.from_numpy(node[array].values.copy())
        inside = ours[tuple(slice(size) for size in truth[array].shape)]
        beyond = ours.numel() - inside.numel()
        assert ours.isnan().sum() - inside.isnan().sum() == beyond, (
            f"{where} {array} has values beyond the text"
        )
        assert_as_precise(
            inside, truth[array], twin[array], name=f"{where} {array}", elsewhere=SLACK
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_equals_the_eager_maps(name):
    compare(name, tiny(name)[1])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_oss", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_the_eager_maps(name, side):
    inputs = dict(tiny(name)[1])
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, : 5 if side == "left" else None] = 0
    if side == "right":
        mask[1] = 1
        mask[1, -5:] = 0
    compare(name, {"input_ids": inputs["input_ids"], "attention_mask": mask})


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_under_the_tap_is_the_model_s_own(name):
    model, inputs = tiny(name)
    anatomy = interp.Anatomy.of(model)
    with torch.no_grad():
        before = model(**inputs)[0]
        with tap(model, lambda visit: None, anatomy=anatomy):
            under = model(**inputs)[0]
        exact = eager_maps(name, inputs, torch.float64)[0]
        eager = eager_maps(name, inputs, torch.float32)[0]
    assert_as_precise(under, exact, eager, before)


def test_learned_sinks_take_what_the_rows_lack():
    inputs = tiny("gpt_oss")[1]
    trace = interp.trace(tiny("gpt_oss")[0], inputs)
    maps = maps_of(eager_maps("gpt_oss", inputs, torch.float64), "self")
    for layer, p in enumerate(maps):
        share = torch.from_numpy(trace["self"]["learned_sink"].sel(layer=layer).values)
        lacking = 1 - p.sum(-1)
        seen = ~share.isnan()
        assert (lacking[seen] > 0).all()
        torch.testing.assert_close(share[seen], lacking[seen].float())
