"""WAAD, FAI and what is read off them, against eager maps."""

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, tiny, tiny_tokenizer
from tolerance import assert_as_precise

import interp
from interp.errors import InputError
from interp.probes.preplan import rhythm
from interp.probes.reach import GLOBAL, LOCAL
from interp.probes.receivers import Receivers
from interp.probes.rhythm import Rhythm
from interp.tasks import Item

N, PROMPT = 40, 12
OPTIONS = Rhythm(horizons=((2, 6), (0, 1000)), receivers=Receivers(2, 1))


def chain(name="a"):
    ids = torch.randint(3, VOCAB, (N,), generator=torch.manual_seed(0)).tolist()
    return Item(name, tuple(ids), (PROMPT, N))


def eager(family, ids, dtype):
    module = tiny(family)[0].to(dtype)
    module.set_attn_implementation("eager")
    module.set_experts_implementation("eager")
    with torch.no_grad():
        out = module(torch.tensor([ids]), output_attentions=True)
    return torch.stack([p[0] for p in out.attentions]), out.logits[0]


def dense(maps, logits, reach):
    """The curves by their definitions, from `[layer, head, query, key]`."""
    distance = torch.arange(N)[:, None] - torch.arange(N)
    local = torch.tensor(reach == LOCAL)
    globl = torch.tensor(reach == GLOBAL)
    mean = maps[local].mean(0)
    found = {"waad": (mean * distance.clamp(0, 10)).sum(-1)[PROMPT:]}
    mean = maps[globl].mean(0)
    for near, far in OPTIONS.horizons:
        seen = (distance >= max(near, 0)) & (distance <= far) & (distance >= 0)
        seen[:PROMPT] = False
        fai = (mean * seen).sum(0) / seen.sum(0)
        found[f"fai {near}"] = fai[PROMPT:]
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    found["entropy"] = entropy[PROMPT - 1 : N - 1]
    return found


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_every_curve_is_that_of_the_mean_of_eager_maps(family):
    model, item = interp.load(tiny(family)[0], tokenizer=tiny_tokenizer()), chain()
    found = rhythm(model, [item], OPTIONS).isel(chain=0)
    reach = found["reach"].sel(sink="with").transpose("layer", "head").values
    truth, honest = (
        dense(*eager(family, item.ids, dtype), reach)
        for dtype in (torch.float64, torch.float32)
    )
    ours = {"waad": found["waad"], "entropy": found["entropy"]}
    for index, (near, _) in enumerate(OPTIONS.horizons):
        ours[f"fai {near}"] = found["fai"].isel(horizon=index)
    for name, values in ours.items():
        got = torch.tensor(values.values).float()
        assert_as_precise(got, truth[name].double(), honest[name], name=name)
    assert (found["waad"] <= 10).all()
    assert found.sizes["token"] == N - PROMPT


def test_forty_percent_of_tokens_preplan_and_no_more_are_anchors():
    model = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    found = rhythm(model, [chain()], OPTIONS).isel(chain=0)
    n = found["delta"].notnull().sum().item()

    assert n == N - PROMPT - 1
    assert found["preplan"].sum() == pytest.approx(0.4 * n, abs=1)
    delta = found["delta"].values
    chosen = found["preplan"].values.astype(bool)
    assert np.nanmin(delta[chosen]) >= np.nanmax(delta[~chosen])


def test_no_chain_is_no_rhythm():
    model = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    with pytest.raises(InputError, match="one or more chains"):
        rhythm(model, [], OPTIONS)
