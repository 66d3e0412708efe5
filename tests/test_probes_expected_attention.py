"""Expected attention: its closed mean, the definition it follows, what it refuses."""

import copy
from collections import defaultdict
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from test_families import eager
from tiny_models import D_HEAD, N_HEADS, N_KV_HEADS, VOCAB, WINDOW, tiny, tiny_tokenizer
from tolerance import assert_as_precise
from torch import Tensor

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.probes.expected_attention import (
    ExpectedAttention,
    log_mean_weight,
    moments,
)

N_TOKENS, N_FUTURE, N_SINK = 14, 9, 3
IDS = torch.randint(
    3, VOCAB, (N_TOKENS,), generator=torch.Generator().manual_seed(3)
).tolist()


def model_of(name: str) -> interp.Model:
    return interp.load(tiny(name)[0], tokenizer=tiny_tokenizer())


def test_the_closed_mean_is_the_mean_over_drawn_queries():
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=4), rng.normal(size=(4, 4)) / 2
    keys, scale = rng.normal(size=(5, 4)), 0.5
    queries = mean + rng.normal(size=(200_000, 4)) @ root.T
    weights = np.exp(scale * queries @ keys.T)
    error = weights.std(0) / np.sqrt(len(weights))

    tensors = (torch.from_numpy(each)[None] for each in (mean, root @ root.T, keys))
    predicted = log_mean_weight(*tensors, scale)[0].exp().numpy()
    assert (abs(predicted - weights.mean(0)) < 4 * error).all()


def test_spread_adds_to_a_mean_of_exp():
    mean, keys = torch.ones(1, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    flat, wide = (
        log_mean_weight(mean, c, keys, 0.5) for c in (None, torch.eye(2)[None])
    )

    assert flat.tolist() == [[0.5, 0]]
    assert wide.tolist() == [[0.5 + 0.5**2 / 2, 0]]


def test_moments_are_those_of_each_head():
    queries = torch.tensor([[[0.0, 0.0], [2.0, 4.0]]])
    mean, covariance = moments(queries)

    assert mean.tolist() == [[1, 2]]
    assert covariance.tolist() == [[[1, 2], [2, 4]]]


def said(name: str, dtype: torch.dtype, moved: int = 0) -> list[dict[str, Tensor]]:
    """What each layer's projections give, or the norms after: `[head, token, d]`."""
    model, found = eager(name, dtype, moved, torch.float32), defaultdict(dict)
    with ExitStack() as stack:
        for index, layer in enumerate(model.model.layers):
            for part in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm"):
                module = getattr(layer.self_attn, part, None)
                if module is None:
                    continue

                def hear(_m, _inputs, output, index=index, part=part):
                    found[index][part[0]] = _heads(output[0])

                stack.callback(module.register_forward_hook(hear).remove)
        with torch.no_grad():
            model(torch.tensor([IDS]))
    return [found[index] for index in sorted(found)]


def _heads(output: Tensor) -> Tensor:
    if output.dim() == 2:
        output = output.unflatten(-1, (-1, D_HEAD))
    return output.transpose(0, 1) if output.shape[0] == N_TOKENS else output


def rotation(position: int, frequencies: Tensor) -> Tensor:
    """The matrix of the rotary embedding at one position, `[d, d]`."""
    cos, sin = (torch.diag(f(position * frequencies)) for f in (torch.cos, torch.sin))
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])


def by_definition(
    name: str,
    dtype: torch.dtype,
    moved: int = 0,
    *,
    norm: bool = True,
    spread: bool = True,
) -> Tensor:
    """The press's scores `[layer, head, key]` of each query head, step by step."""
    model, layers = eager(name, dtype, moved, torch.float32), []
    for layer, parts in zip(model.model.layers, said(name, dtype, moved), strict=True):
        owner = layer.self_attn
        kind = model.config.layer_types[owner.layer_idx] if _has_types(model) else None
        rotary = model.model.rotary_emb
        frequencies = getattr(rotary, f"{kind}_inv_freq", None)
        frequencies = rotary.inv_freq if frequencies is None else frequencies
        at = [rotation(t, frequencies.to(dtype)) for t in range(N_TOKENS + N_FUTURE)]
        turn = torch.stack(at[N_TOKENS:]).mean(0)
        rows = []
        for head in range(N_HEADS):
            kv_head = head * N_KV_HEADS // N_HEADS
            queries = parts["q"][head, N_SINK:]
            mean, off = queries.mean(0), queries - queries.mean(0)
            covariance = turn @ (off.T @ off / len(queries)) @ turn.T
            logits = []
            for place in range(N_SINK, N_TOKENS):
                key = at[place] @ parts["k"][kv_head, place]
                logit = owner.scaling * (turn @ mean) @ key
                if spread:
                    logit = logit + owner.scaling**2 / 2 * key @ covariance @ key
                if kind == "sliding_attention" and place <= N_TOKENS - WINDOW:
                    logit = torch.tensor(-torch.inf, dtype=dtype)
                logits.append(logit)
            share = torch.stack(logits).softmax(-1)
            if norm:
                share = (share + 0.25) * parts["v"][kv_head, N_SINK:].norm(dim=-1)
            rows.append(torch.cat([share.new_full((N_SINK,), torch.nan), share]))
        layers.append(torch.stack(rows))
    return torch.stack(layers)


def _has_types(model) -> bool:
    return getattr(model.config, "layer_types", None) is not None


@pytest.mark.parametrize("how", [{}, {"norm": False}, {"norm": False, "spread": False}])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_oss"])
def test_scores_are_those_of_the_press_head_by_head(name, how, untouched):
    norm, spread = how.get("norm", True), how.get("spread", True)
    model = model_of(name)
    expected = ExpectedAttention(N_FUTURE, N_SINK, spread, norm, 0.25)
    with untouched(model.module):
        scores = expected(model, IDS)

    ours = torch.from_numpy(scores.values)
    twins = [by_definition(name, torch.float32, moved, **how) for moved in range(3)]
    assert_as_precise(ours, by_definition(name, torch.float64, **how), *twins)
    assert scores.dims == ("layer", "head", "key")
    assert scores["kv_head"].values.tolist() == [0, 0, 1, 1]
    assert scores["key_token"].values[0] == f"w{IDS[0]}"
    assert scores.attrs["units"] == ("activation" if norm else "fraction")


def test_shares_sum_to_one_over_what_is_scored():
    scores = ExpectedAttention(5, 2, value_norm=False)(model_of("llama"), IDS)

    assert scores.isel(key=slice(2)).isnull().all()
    assert scores.sum("key").values == pytest.approx(1)


def test_frequencies_that_change_with_the_text_are_as_they_were():
    module = tiny("llama")[0]
    config = copy.deepcopy(module.config)
    config.max_position_embeddings = 16
    config.rope_parameters = {
        "rope_type": "dynamic",
        "rope_theta": 10_000.0,
        "factor": 2.0,
    }
    model = interp.load(type(module)(config).eval(), tokenizer=tiny_tokenizer())
    before = model.module.model.rotary_emb.inv_freq.clone()
    ExpectedAttention(n_future=40)(model, IDS)

    assert torch.equal(model.module.model.rotary_emb.inv_freq, before)


def test_the_first_tokens_stay_and_the_rest_by_score():
    expected = ExpectedAttention(5, 2)
    scores = expected(model_of("llama"), IDS)
    kept = expected.keep(scores, 6)

    assert (kept.sum("key") == 6).all()
    assert kept.isel(key=slice(2)).all()
    left = scores.where(~kept).max("key")
    assert (scores.where(kept).min("key") >= left).all()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "no rotary embedding"),
        ("gpt_neox", "not a projection"),
        ("phi3", "not a projection"),
        ("deepseek_v3", "not a projection"),
        ("gemma2", "caps its scores"),
        ("llama4", "no window"),
        ("t5", "decoder-only"),
        ("bert", "decoder-only"),
    ],
)
def test_a_model_of_another_kind_is_refused(name, why, untouched):
    model = model_of(name)
    with untouched(model.module), pytest.raises(UnsupportedModelError, match=why):
        ExpectedAttention()(model, IDS)


@pytest.mark.parametrize("inputs", [[IDS, IDS], IDS[:4]])
def test_several_texts_and_first_tokens_alone_are_refused(inputs):
    with pytest.raises(InputError, match="one text with more than its first 4 tokens"):
        ExpectedAttention()(model_of("llama"), inputs)


@pytest.mark.parametrize("option", ["n_future", "n_sink", "epsilon"])
def test_options_without_meaning_are_refused(option):
    with pytest.raises(InputError, match=f"{option}=-1"):
        ExpectedAttention(**{option: -1})
