"""Every family's trace against its own eager attention, run in float64."""

from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
import xarray as xr
from dense import Dense
from tiny_models import ENCODER_DECODERS, FAMILIES, WINDOW, tiny
from tolerance import assert_as_precise, assert_same_index
from torch import Tensor

import interp
from interp.capture import Capture, TokenEdges
from interp.kernels import reference
from interp.kernels.definitions import COLUMNS, ROWS, BlockMap, Pattern
from interp.tap import tap

CAPTURE = Capture((*ROWS, *COLUMNS, BlockMap(4), Pattern()), TokenEdges(), True)
SITES = {
    "self": ("decoder_attentions", "attentions"),
    "cross": ("cross_attentions",),
    "encoder": ("encoder_attentions", "attentions"),
}
DECODER_IDS = ("decoder_input_ids", "input_ids")

Inputs = dict[str, Tensor]
Maps = dict[str, list[Tensor]]
"""Attention weights `[sample, head, query, key]` of each layer of each site."""


def run(
    name: str,
    inputs: Inputs,
    dtype: torch.dtype,
    moved: int = 0,
    stored: torch.dtype = torch.float32,
) -> Any:
    """An eager forward.

    Args:
        name: The family.
        inputs: Of the model.
        dtype: What to compute in.
        moved: A seed: each parameter is then rounded once, up or down.
        stored: What the parameters came in.
    """
    given = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    # Most families take the softmax in float32, whatever they are run in.
    softmax = mock.patch.object(torch.nn.functional, "softmax", own_softmax)
    with softmax, torch.no_grad():
        model = eager(name, dtype, moved, stored)
        return model(**given, output_attentions=True, use_cache=False)


@cache
def eager(name: str, dtype: torch.dtype, moved: int, stored: torch.dtype) -> Any:
    model = tiny(name)[0].to(stored).to(dtype)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # grouped products know no float64
    draw = torch.Generator().manual_seed(moved)
    with torch.no_grad():
        for parameter in model.parameters() if moved else ():
            up = torch.rand(parameter.shape, generator=draw) < 0.5
            parameter += torch.where(up, 1, -1) * torch.finfo(dtype).eps * parameter
    return model


def own_softmax(scores: Tensor, dim: int = -1, **_: Any) -> Tensor:
    return scores.softmax(dim)


def maps_of(outputs: Any, site: str) -> list[Tensor]:
    return next(list(outputs[f]) for f in SITES[site] if outputs.get(f))


def edges_of(inputs: Inputs, site: str) -> list[Tensor] | None:
    """Previous token, latest earlier copy, and what followed it, by their words."""
    names = DECODER_IDS if site == "self" else ("input_ids",)
    ids = next((inputs[name][0].tolist() for name in names if name in inputs), None)
    if site == "cross" or ids is None:
        return None
    copies = [
        max((k for k in range(q) if ids[k] == ids[q]), default=-1)
        for q in range(len(ids))
    ]
    rows = [
        [q - 1 for q in range(len(ids))],
        copies,
        [-1 if k < 0 else k + 1 for k in copies],
    ]
    return [torch.tensor(row)[:, None] for row in rows]


def arrays_of(layers: list[Tensor], edges: list[Tensor] | None) -> dict[str, Tensor]:
    """Every array of one text, `[layer, head, ...]`, by definition."""
    found = []
    for p in layers:
        n_query, n_key = p.shape[2:]
        distance = torch.arange(n_query)[:, None] - torch.arange(n_key)
        dense = Dense(p[0], p[0] > 0, p[0].sum(-1), distance, torch.arange(n_key))
        arrays = dense.arrays(size=4, edges=edges)
        found.append(arrays | {"learned_sink": 1 - p[0].sum(-1)})
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def alone(inputs: Inputs, sample: int) -> Inputs:
    """One text without its padding."""
    one = {}
    for key, value in inputs.items():
        mask = inputs.get(
            "decoder_attention_mask" if key.startswith("decoder") else "attention_mask"
        )
        own = value[sample : sample + 1]
        if "mask" in key or key == "position_ids":
            continue
        one[key] = own if mask is None else own[:, mask[sample].bool()]
    return one


def check(name: str, inputs: Inputs) -> None:
    """A batch's trace against each of its texts alone."""
    trace = interp.trace(tiny(name)[0], inputs, capture=CAPTURE)
    sites = [site for site in SITES if site in trace.children]
    assert sites
    for sample in range(len(next(iter(inputs.values())))):
        own = alone(inputs, sample)
        exact = run(name, own, torch.float64)
        twins = [run(name, own, torch.float32, moved) for moved in range(4)]
        for site in sites:
            edges = edges_of(own, site)
            truth = arrays_of(maps_of(exact, site), edges)
            near = [arrays_of(maps_of(twin, site), edges) for twin in twins]
            check_site(trace[site].to_dataset().sel(sample=sample), truth, near)


def check_site(
    node: xr.Dataset, truth: dict[str, Tensor], twins: list[dict[str, Tensor]]
) -> None:
    p = truth["pattern"]
    worst = max(float((twin["pattern"] - p).abs().max()) for twin in twins)
    eps = torch.finfo(torch.float32).eps
    for name in sorted(set(node.data_vars) - {"lse"}):
        ours = torch.from_numpy(node[name].values.copy())
        shape = p.shape[:3] if name == "max_key" else truth[name].shape
        inside = ours[tuple(slice(size) for size in shape)]
        empty = ours == -1 if name == "max_key" else ours.isnan()
        beyond = ours.numel() - inside.numel()
        within = empty[tuple(slice(size) for size in shape)].sum()
        assert empty.sum() - within == beyond, f"{name} has values beyond the text"
        if name == "max_key":
            assert_same_index(inside, p, p > 0, 4 * (worst + eps))
        else:
            few = name in {"edges", "entropy", "learned_sink"}
            assert_as_precise(
                inside,
                truth[name],
                *(twin[name] for twin in twins),
                name=name,
                elsewhere=worst + eps if few else 0.0,
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_equals_the_eager_maps(name):
    check(name, tiny(name)[1])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name",
    [name for name in FAMILIES if name not in {*ENCODER_DECODERS, "vit"}],
)
def test_each_text_of_a_padded_batch_equals_its_own_eager_maps(name, side):
    ids = tiny(name)[1]["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, slice(0, 5) if side == "left" else slice(-5, None)] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name in {"gpt2", "bert"}:  # learned positions: those that the texts alone have
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    check(name, inputs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_encoder_and_a_decoder_are_padded_each_in_its_own_way(side):
    inputs = dict(tiny("t5")[1])
    source = torch.ones_like(inputs["input_ids"])
    source[0, slice(0, 6) if side == "left" else slice(-6, None)] = 0
    target = torch.ones_like(inputs["decoder_input_ids"])
    target[1, slice(0, 3) if side == "left" else slice(-3, None)] = 0
    inputs |= {"attention_mask": source, "decoder_attention_mask": target}
    check("t5", inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_sum_exp_and_weights_are_those_of_the_model_s_own_scores(name):
    inputs = tiny(name)[1]
    model = tiny(name)[0].double()
    model.set_experts_implementation("eager")
    seen = []
    with torch.no_grad(), tap(model, seen.append):
        model(
            **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        )
    trace = interp.trace(tiny(name)[0], inputs, capture=CAPTURE)
    exact = run(name, inputs, torch.float64)
    for visit in seen:
        site, layer = visit.site.name, visit.site.layer
        p, lse = reference.weights(visit.call)
        torch.testing.assert_close(p, maps_of(exact, site)[layer])
        ours = torch.from_numpy(trace[site]["lse"].sel(layer=layer).values)
        # The scores follow from what earlier layers rounded.
        torch.testing.assert_close(ours, lse.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_under_the_tap_is_the_model_s_own(name):
    model, inputs = tiny(name)
    with torch.no_grad():
        before = model(**inputs)[0]
        with tap(model, lambda visit: None):
            under = model(**inputs)[0]
    twins = [run(name, inputs, torch.float32, moved)[0] for moved in range(4)]
    assert_as_precise(under, run(name, inputs, torch.float64)[0], before, *twins)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bert"])
def test_a_model_in_half_precision_is_traced_as_precisely_as_it_runs(name, dtype):
    inputs = {key: value[:1] for key, value in tiny(name)[1].items()}
    model = tiny(name)[0].to(dtype)
    trace = interp.trace(model, inputs, capture=CAPTURE)
    [site] = set(trace.children) & set(SITES)
    truth = run(name, inputs, torch.float64, stored=dtype)
    twins = [run(name, inputs, dtype, moved, dtype) for moved in range(4)]
    arrays = [
        arrays_of([p.double() for p in maps_of(outputs, site)], None)
        for outputs in (truth, *twins)
    ]
    check_site(trace[site].to_dataset().drop_vars("edges"), arrays[0], arrays[1:])


def test_learned_sinks_take_what_the_rows_lack():
    inputs = tiny("gpt_oss")[1]
    trace = interp.trace(tiny("gpt_oss")[0], inputs)
    for layer, p in enumerate(maps_of(run("gpt_oss", inputs, torch.float64), "self")):
        share = torch.from_numpy(trace["self"]["learned_sink"].sel(layer=layer).values)
        lacking = 1 - p.sum(-1)
        assert (lacking > 0).all()
        torch.testing.assert_close(share, lacking.float())


def test_each_layer_sees_as_far_as_its_config_says():
    for name, kinds in {
        "mistral": ["window", "window"],
        "gemma3": ["window", "window", "window", "full"],
        "llama4": ["chunk", "full"],
        "modernbert": ["full", "both sides"],
    }.items():
        trace = interp.trace(tiny(name)[0], tiny(name)[1], capture=CAPTURE)
        [site] = set(trace.children) & set(SITES)
        node = trace[site]
        for layer, kind in enumerate(kinds):
            seen = (
                torch.from_numpy(node["pattern"].sel(layer=layer, sample=0).values) > 0
            )
            index = torch.arange(seen.shape[-1])
            distance = index[:, None] - index
            wanted = {
                "window": (distance >= 0) & (distance < WINDOW),
                "chunk": (distance >= 0)
                & (index[:, None] // WINDOW == index // WINDOW),
                "both sides": distance.abs() <= WINDOW,
                "full": distance >= (0 if site == "self" else -len(index)),
            }[kind]
            assert torch.equal(seen, wanted.expand_as(seen)), (name, layer, kind)
