"""KV groups: which have to keep a full cache, and how signals agree over them."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_models import VOCAB, tiny, tiny_tokenizer
from tolerance import assert_as_precise

import interp
from interp.capture import union
from interp.errors import InputError
from interp.heads import HeadGrid, HeadId, HeadSet
from interp.probes.agreement import agreement
from interp.probes.detecting import detect
from interp.probes.groups import (
    RazorGroups,
    group_agreement,
    over_groups,
    razor_groups,
)
from interp.probes.patterns import Echo, Induction
from interp.tasks import repeated_random


def signal(values, group=2):
    values = np.asarray(values, dtype=float)
    heads = np.arange(values.shape[1])
    coords = {"layer": np.arange(len(values)), "head": heads}
    coords["kv_head"] = ("head", heads // group)
    return xr.DataArray(values, dims=("layer", "head"), coords=coords)


def random_scores(seed=0, shape=(30, 9), group=3):
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {name: signal(rng.random(shape), group) for name in ("induction", "echo")}
    )


def test_a_group_has_the_largest_value_of_its_heads():
    found = over_groups(signal([[1, 5, 2, 0], [np.nan, 3, np.nan, np.nan]]))

    assert found.dims == ("layer", "head")
    np.testing.assert_array_equal(found, [[5, 2], [3, np.nan]])
    assert HeadGrid.of(found) == HeadGrid(2, 2, 2)


def test_without_groups_every_head_is_its_own():
    alone = signal([[1, 5], [2, 0]]).drop_vars("kv_head")
    assert over_groups(alone).identical(alone)
    with pytest.raises(InputError, match="over \\(layer, head\\)"):
        over_groups(alone.expand_dims("text"))


def test_the_best_groups_of_either_score_are_kept_whole():
    # 10 groups: 20 % of them by induction, 10 % by echo.
    induction = np.zeros((5, 4))
    induction[3, 1], induction[0, 2], induction[0, 3] = 0.9, 0.5, 0.8
    echo = np.zeros((5, 4))
    echo[2, 0], echo[2, 3] = 0.4, 0.6
    scores = xr.Dataset({"induction": signal(induction), "echo": signal(echo)})

    kept = razor_groups(scores, induction=0.2, echo=0.1)

    assert kept.heads == tuple(
        HeadId(*each) for each in ((3, 0), (3, 1), (0, 2), (0, 3), (2, 2), (2, 3))
    )
    assert kept.grid == HeadGrid(5, 4, 2)


def test_counts_are_rounded_shares_of_the_groups():
    scores = random_scores()
    kept = razor_groups(scores)
    by_echo = HeadSet.top(over_groups(scores["echo"]), k=1)
    by_induction = HeadSet.top(over_groups(scores["induction"]), k=13)

    # 14 % of 90 groups are 12.6, 1 % are 0.9.
    assert set(kept.kv_heads) == {(h.layer, h.head) for h in by_echo | by_induction}
    assert kept == kept.as_kv_groups()


def test_a_group_that_is_best_in_both_counts_once():
    scores = random_scores()
    scores["echo"] = scores["induction"]
    assert len(razor_groups(scores)) == 13 * 3


def test_a_missing_score_is_named():
    with pytest.raises(InputError, match=r"echo is not there\. Pass detect"):
        razor_groups(random_scores()[["induction"]])
    with pytest.raises(InputError, match="share is a fraction"):
        razor_groups(random_scores(), echo=0.0)


def test_agreement_counts_each_group_once():
    scores = random_scores()
    found = group_agreement(scores.assign(other=("step", [1.0])))
    grouped = xr.Dataset({name: over_groups(scores[name]) for name in scores})

    assert found.sel(detector="echo", other="induction")["n_heads"] == 90
    assert found.identical(agreement(grouped))


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma3"])
def test_echo_and_induction_sum_all_earlier_copies(name):
    module, _ = tiny(name)
    task = repeated_random(VOCAB, block=6, copies=4, avoid=range(3))
    length = len(task.ids)

    def scores(module, ids):
        module.set_attn_implementation("eager")
        with torch.no_grad():
            maps = module(ids, output_attentions=True).attentions
        weights = torch.stack(maps)[:, 0]
        rows = {"echo": [], "induction": []}
        for i in range(6, length):
            earlier = [i - 6 * m for m in range(1, i // 6 + 1)]
            rows["echo"].append(sum(weights[:, :, i, j] for j in earlier))
            rows["induction"].append(sum(weights[:, :, i, j + 1] for j in earlier))
        return {kind: torch.stack(each).mean(0) for kind, each in rows.items()}

    trace = interp.trace(module, list(task.ids), capture=task.capture, attrs=task.attrs)
    ours = detect(trace, ["echo", "induction"])
    ids = torch.tensor([task.ids])
    eager = scores(tiny(name)[0], ids)
    exact = tiny(name)[0].double()
    if name == "gpt_oss":
        exact.set_experts_implementation("eager")  # the other knows no float64
    truth = scores(exact, ids)
    for kind in truth:
        found = torch.from_numpy(ours[kind].values).float()
        assert_as_precise(found, truth[kind], eager[kind], name=kind)


@pytest.fixture(scope="module")
def heads():
    model = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    return detect(model, ["razor", "induction", "echo"], texts="w5 w9 w7 w5 w9")


class TestRazorInAnAtlas:
    """The groups that `razor_groups` keeps, in each run of an atlas."""

    def test_each_run_keeps_its_own_groups(self, heads):
        kinds = ("induction", "echo")
        seeds = [text for text in heads["text"].values if "random" in str(text)]
        assert len(seeds) == 3
        for seed in seeds:
            of_seed = {k: heads[f"{k}_texts"].sel(text=seed, drop=True) for k in kinds}
            kept = set(razor_groups(xr.Dataset(of_seed)))
            ours = heads["razor_texts"].sel(text=seed)
            for layer, head in np.ndindex(ours.shape):
                assert ours.values[layer, head] == (HeadId(layer, head) in kept)

    def test_the_value_is_the_share_of_runs_with_an_interval_over_seeds(self, heads):
        runs = heads["razor_texts"].dropna("text", how="all")
        np.testing.assert_allclose(heads["razor"], runs.mean("text"))
        assert "3 seeds" in heads["razor"].attrs["interval"]
        group = heads["razor"].groupby("kv_head")
        assert (group.max("head") == group.min("head")).all()

    def test_it_costs_no_forward_beside_induction_and_echo(self):
        needs = RazorGroups().needs
        assert needs == union([Induction().needs, Echo().needs])

    @pytest.mark.parametrize("share", [0.0, 1.5])
    def test_what_is_no_share_is_refused(self, share):
        with pytest.raises(InputError, match="above 0 and up to 1"):
            RazorGroups(induction=share)
