"""How much heads write, against what the projection is given."""

import numpy as np
import pytest
import torch
import xarray as xr
from test_families import alone, eager
from tiny_models import N_HEADS, N_TOKENS, tiny, tiny_tokenizer
from tolerance import assert_as_precise
from torch import Tensor

import interp
from interp.errors import UnsupportedModelError
from interp.probes.detecting import detect
from interp.probes.head_outputs import SpAttenHeads, output_norms
from interp.probes.reading import Bootstrap
from interp.tasks.texts import Texts

FAMILIES = ("llama", "gemma3", "gpt_oss")
WORDS = " ".join(f"w{3 + i % 90}" for i in range(30))


def model_of(name: str = "llama") -> interp.Model:
    return interp.load(tiny(name)[0], tokenizer=tiny_tokenizer())


def by_definition(
    name: str, inputs: dict[str, Tensor], dtype: torch.dtype, moved: int = 0
) -> Tensor:
    """Norms `[layer, head, query]` of what each layer's projection is given."""
    model, layers, handles = eager(name, dtype, moved, torch.float32), [], []
    for layer in model.model.layers:
        handles.append(
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, given: layers.append(given[0][0])
            )
        )
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    heads = torch.stack(layers).unflatten(-1, (N_HEADS, -1))
    return heads.abs().sum(-1).transpose(1, 2)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_those_of_what_the_projection_is_given(name, side, untouched):
    module, inputs = tiny(name)
    mask = torch.ones(2, N_TOKENS, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(-4, None)] = 0
    inputs = {**inputs, "attention_mask": mask}
    with untouched(module):
        norms = output_norms(interp.load(module), inputs)
    assert norms.dims == ("sample", "layer", "head", "query")
    for sample in range(2):
        own = alone(inputs, sample)
        n_tokens = own["input_ids"].shape[1]
        ours = norms.isel(sample=sample)
        assert ours.isel(query=slice(n_tokens, None)).isnull().all()
        truth = by_definition(name, own, torch.float64)
        twins = [by_definition(name, own, torch.float32, moved) for moved in range(3)]
        found = torch.from_numpy(ours.isel(query=slice(n_tokens)).values)
        assert_as_precise(found, truth, *twins)


def test_importance_cumulates_over_layers_and_averages_over_queries_and_texts():
    model = model_of()
    found = SpAttenHeads(texts=(WORDS,), max_tokens=16).run(model)
    items = Texts({"words": WORDS}, max_tokens=16).items(model)
    each = [output_norms(model, list(item.ids)) for item in items]
    runs = np.stack([norms.mean("query", dtype="float64") for norms in each])

    total = runs.cumsum(1)
    assert found["spatten_heads_runs"].values == pytest.approx(total)
    assert found["spatten_heads"].values == pytest.approx(total.mean(0))
    assert found["head_magnitude"].values == pytest.approx(runs.mean(0))
    assert found["spatten_heads"].attrs["texts"] == 1
    assert found["kv_head"].values.tolist() == [0, 0, 1, 1]


def test_the_interval_holds_the_mean():
    found = SpAttenHeads((WORDS,), 8).run(model_of(), bootstrap=Bootstrap(resamples=50))
    low, high = (found["spatten_heads_interval"].sel(bound=b) for b in ("low", "high"))

    assert (low <= found["spatten_heads"]).all()
    assert (found["spatten_heads"] <= high).all()


def test_one_stretch_of_text_has_no_interval():
    found = SpAttenHeads((WORDS,), 64).run(model_of())

    assert "spatten_heads_interval" not in found


def test_an_atlas_measures_it_by_its_name():
    heads = detect(model_of(), ["spatten_heads"], texts=WORDS, max_tokens=64)

    assert heads["spatten_heads"].dims == ("layer", "head")
    assert (heads["spatten_heads"].diff("layer") > 0).all()


def test_every_stretch_is_told():
    told = []
    SpAttenHeads((WORDS,), 16).run(model_of(), progress=lambda *done: told.append(done))

    assert told == [("spatten_heads", 1, 2), ("spatten_heads", 2, 2)]


def test_a_site_that_the_model_lacks_is_refused():
    with pytest.raises(UnsupportedModelError, match="'cross'"):
        output_norms(model_of(), [3, 4, 5], site="cross")


def test_norms_of_one_text_have_no_samples():
    norms = output_norms(model_of(), [3, 4, 5])

    assert norms.dims == ("layer", "head", "query")
    assert isinstance(norms, xr.DataArray)
