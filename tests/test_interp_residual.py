"""The residual stream: what is told of it, and who wrote what."""

import pytest
import torch
from tiny_models import FAMILIES, tiny
from tolerance import assert_as_precise

import interp
from interp import residual
from interp.capture import Capture

ONLY = Capture((), None, residual=True)


def test_a_stream_by_hand():
    stream = torch.tensor([[3.0, -4.0, 0.0, 1.0], [0.5, 0.0, 0.0, -0.5]])
    told = residual.describe(stream)
    assert told["norm"].tolist() == pytest.approx([26**0.5, 0.5**0.5])
    assert told["max"].tolist() == [4.0, 0.5]
    assert told["max_channel"].tolist() == [1, 0]
    assert told["median"].tolist() == [1.0, 0.0]  # the lower of the two in the middle
    assert told["median_all"] == 0.5
    assert told["top_value"][:3].tolist() == [-4.0, 3.0, 1.0]
    assert told["top_token"][:4].tolist() == [0, 0, 0, 1]
    assert told["top_channel"][:3].tolist() == [1, 0, 3]
    assert told["attention_write"].isnan().all()


def test_the_cosine_is_that_to_the_first_token():
    stream = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0], [4.0, -3.0], [0, 0]])
    told = residual.describe(stream.repeat(1, 2))
    assert told["cosine"].tolist() == pytest.approx([1, 1, -1, 0, 0], abs=1e-7)


def test_the_cosine_of_long_texts_is_made_in_pieces():
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(2 * residual.ROWS + 3, 8, generator=draw)
    ours = residual.describe(stream)["cosine"]
    first = stream[:1].double()
    truth = torch.cosine_similarity(first, stream.double())
    assert_as_precise(ours, truth, torch.cosine_similarity(stream[:1], stream))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_cosines_of_a_model_are_those_of_its_hidden_states(name):
    model, inputs = tiny(name)
    ids = inputs["input_ids"][:1]
    ours = interp.trace(model, ids, capture=ONLY)["residual"]["cosine"]
    cosines = []
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            states = model.to(dtype)(ids, output_hidden_states=True).hidden_states
        streams = torch.cat(states[:-1])
        cosines.append(torch.cosine_similarity(streams[:, :1], streams, dim=-1))
    eager, truth = cosines
    assert_as_precise(torch.from_numpy(ours.values[:-1]), truth, eager)


def test_ranks_that_a_small_stream_does_not_fill_are_empty():
    told = residual.describe(torch.tensor([[3.0, -4.0, 2.0]]))
    assert told["top_value"].isnan().tolist() == [False] * 3 + [True] * 5
    assert told["top_token"].tolist() == [0] * 3 + [-1] * 5


def test_the_largest_cells_are_found_in_any_token():
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(50, 32, generator=draw)
    stream[7] *= 30
    told = residual.describe(stream)
    size, order = stream.abs().flatten().sort(descending=True)
    assert torch.equal(told["top_value"].abs(), size[:8])
    assert torch.equal(told["top_token"] * 32 + told["top_channel"], order[:8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 6), (40, 33)])
def test_the_median_of_bits_is_the_median(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    magnitude = torch.randn(shape, generator=draw).mul(3).to(dtype).abs()
    magnitude[0, 0] = 0.0
    for values in (magnitude, magnitude.round(), magnitude.square().mul(9000)):
        assert residual._median_of_bits(values) == values.flatten().median()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stream_in_half_precision_is_told_as_the_numbers_it_holds(dtype):
    draw = torch.Generator().manual_seed(0)
    input_, attention, mlp = torch.randn(3, 9, 16, generator=draw).to(dtype)
    parts = {"input": input_, "attention": attention, "mlp": mlp}
    stream = input_ + attention + mlp
    told = residual.describe(stream, parts)
    wanted = residual.describe(stream.float())
    for name in wanted.keys() - {"attention_write", "mlp_write"}:
        assert told[name].dtype == wanted[name].dtype
        torch.testing.assert_close(told[name], wanted[name], equal_nan=True)
    at = torch.arange(9), wanted["max_channel"]
    assert torch.equal(told["attention_write"], attention[at].float())


@pytest.mark.parametrize("broken", ["shape", "sum", "missing"])
def test_parts_that_do_not_add_up_are_unknown(broken):
    stream = torch.ones(3, 4)
    parts = {"input": stream / 2, "attention": stream / 4, "mlp": stream / 4}
    told = residual.describe(stream, parts)
    assert told["attention_write"].tolist() == [0.25] * 3
    if broken == "shape":
        parts["mlp"] = torch.ones(4, 3)
    elif broken == "sum":
        parts["mlp"] = stream / 3
    else:
        del parts["mlp"]
    told = residual.describe(stream, parts)
    assert told["attention_write"].isnan().all()
    assert told["mlp_write"].isnan().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stack_is_told_layer_by_layer(name):
    model, inputs = tiny(name)
    one = {key: value[:1] for key, value in inputs.items()}
    trace = interp.trace(model, one, capture=ONLY)
    with torch.no_grad():
        outputs = model(**one, output_hidden_states=True)
    fields = {
        "residual": ("decoder_hidden_states", "hidden_states"),
        "encoder_residual": ("encoder_hidden_states",),
    }
    assert "residual" in trace.children
    for node in trace.children:
        states = next(outputs[f] for f in fields[node] if outputs.get(f) is not None)
        told = trace[node]
        assert told.sizes["layer"] == len(states)
        for layer, state in enumerate(states[:-1]):  # the last has had the final norm
            own = told.sel(layer=layer)
            torch.testing.assert_close(
                torch.from_numpy(own["norm"].values), state[0].norm(dim=-1)
            )
            torch.testing.assert_close(
                torch.from_numpy(own["max"].values), state[0].abs().amax(-1)
            )


# The module whose output is what the half adds; a norm after it counts (Gemma).
HALVES = {
    "llama": ("self_attn.o_proj", "mlp.down_proj", 0.0),
    "mistral": ("self_attn.o_proj", "mlp.down_proj", 0.0),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", -1.0),
    "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm", -1.0),
    "phi3": ("self_attn.o_proj", "mlp.down_proj", 0.0),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj", 0.0),
}


@pytest.mark.parametrize("half", ["attention", "mlp"])
@pytest.mark.parametrize("name", HALVES)
def test_a_half_that_is_silenced_writes_nothing_and_the_other_all(name, half):
    model, inputs = tiny(name)
    attention, mlp, silent = HALVES[name]
    block = model.model.layers[1]
    with torch.no_grad():
        part = block.get_submodule(attention if half == "attention" else mlp)
        part.weight.fill_(silent)
        states = model(**inputs, output_hidden_states=True).hidden_states
    told = interp.trace(model, {"input_ids": inputs["input_ids"][:1]}, capture=ONLY)
    stream = told["residual"].sel(layer=2)
    other = "mlp" if half == "attention" else "attention"
    assert (stream[f"{half}_write"] == 0).all()
    assert (stream[f"{other}_write"] != 0).all()
    before = states[1][0].gather(
        1, torch.from_numpy(stream["max_channel"].values).long()[:, None]
    )[:, 0]
    after = before + torch.from_numpy(stream[f"{other}_write"].values)
    torch.testing.assert_close(after.abs(), torch.from_numpy(stream["max"].values))


def test_padding_has_no_stream():
    model, inputs = tiny("llama")
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, :5] = 0
    told = interp.trace(model, inputs | {"attention_mask": mask}, capture=ONLY)
    norm = told["residual"]["norm"]
    assert norm.sel(sample=0).notnull().all()
    assert norm.sel(sample=1, token=slice(0, 6)).notnull().all()
    assert norm.sel(sample=1, token=slice(7, None)).isnull().all()
