"""Spans of ALiBi heads: the formula by hand, and what it promises."""

import math

import pytest
import torch
import transformers as hf
from tiny_models import tiny

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.probes.alibi import alibi_spans

WIDTH, N = 8, 64


def bloom(n_heads=4, width=WIDTH, scale=1.0):
    torch.manual_seed(0)
    config = hf.BloomConfig(
        vocab_size=50, hidden_size=width, n_layer=2, n_head=n_heads, bos_token_id=1
    )
    module = hf.BloomForCausalLM(config).eval()
    for block in module.transformer.h:
        block.self_attention.query_key_value.weight.data.mul_(scale)
    return module


def mpt(n_heads=4, width=WIDTH, **options):
    torch.manual_seed(0)
    config = hf.MptConfig(
        vocab_size=50,
        d_model=width,
        n_heads=n_heads,
        n_layers=2,
        max_seq_len=N,
        **options,
    )
    return hf.MptForCausalLM(config).eval()


def spans(module, **options):
    return alibi_spans(interp.load(module), **options)


@pytest.fixture(autouse=True)
def own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


def test_a_head_that_scores_nothing_is_bounded_by_its_slope_alone():
    found = spans(bloom(scale=0.0))

    assert found.dims == ("layer", "head")
    slopes = [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    wanted = [math.log(1000) / slope for slope in slopes]
    assert found.sel(layer=1).values.tolist() == pytest.approx(wanted)
    assert found.attrs["units"] == "tokens"


def test_the_formula_by_hand():
    module = bloom(n_heads=2, width=4)
    block = module.transformer.h[1]
    own = torch.zeros(2, 3, 2, 4)  # head, query key value, d, d_model
    own[0, 0], own[0, 1] = (
        torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0]]),
        torch.eye(4)[:2],
    )
    own[1, 0], own[1, 1] = torch.eye(4)[:2], torch.eye(4)[2:] * 5
    block.self_attention.query_key_value.weight.data = own.flatten(0, 2)
    block.input_layernorm.weight.data = torch.tensor([1.0, 2, 0, 1])
    block.input_layernorm.bias.data = torch.tensor([0.0, 0, 3, 1])
    # |W_Q W_K| is 3 and 5, over the root of d = 2; norms 6 and 10; slopes 1/16, 1/256.
    wanted = [
        (2 * largest / math.sqrt(2) * (6 + 10) - math.log(0.01)) / slope
        for largest, slope in ((3, 1 / 16), (5, 1 / 256))
    ]
    found = spans(module, epsilon=0.01).sel(layer=1)
    assert found.values.tolist() == pytest.approx(wanted)


def test_the_norm_is_that_of_the_whole_map():
    module = mpt(n_heads=2)
    weight = module.transformer.blocks[0].attn.Wqkv.weight.double()
    query, key, _ = weight.unflatten(0, (3, 2, 4))
    gamma = module.transformer.blocks[0].norm_1.weight.double()
    width = torch.linalg.svdvals(query.mT @ key / 2)[:, 0]
    slopes = torch.tensor([1 / 16, 1 / 256])
    wanted = (2 * width * gamma.square().sum() + math.log(1000)) / slopes
    assert spans(module).sel(layer=0).values.tolist() == pytest.approx(wanted.tolist())


def test_a_scale_of_the_models_own_counts():
    plain, scaled = mpt(), mpt(attn_config={"softmax_scale": 4 * 2**-0.5})
    assert (spans(scaled) > spans(plain)).all()


@pytest.mark.parametrize("build", [bloom, mpt])
@pytest.mark.parametrize("n_heads", [4, 6])
def test_no_token_beyond_the_span_gets_more_than_epsilon(build, n_heads):
    module = build(n_heads, width=24)
    module.set_attn_implementation("eager")
    found = spans(module, epsilon=0.1)
    ids = torch.randint(3, 50, (1, N))
    with torch.no_grad():
        maps = torch.stack(module(ids, output_attentions=True).attentions)[:, 0]
    back = torch.arange(N)[:, None] - torch.arange(N)
    limits = torch.from_numpy(found.values)[..., None, None]
    beyond = back > limits

    assert beyond[:, 0].any()
    assert not (maps[beyond] > 0.1).any()


def test_a_smaller_epsilon_looks_further():
    assert (spans(bloom(), epsilon=1e-6) > spans(bloom())).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "mamba"])
def test_a_model_without_alibi_is_refused_by_name(name):
    module, _ = tiny(name)
    with pytest.raises(UnsupportedModelError, match=f"; {name} models have none"):
        spans(module)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -1.0])
def test_an_epsilon_that_is_no_share_is_refused(epsilon):
    with pytest.raises(InputError, match=f"epsilon={epsilon}"):
        spans(bloom(), epsilon=epsilon)
