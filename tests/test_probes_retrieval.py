"""Retrieval heads: the criterion by hand, and whole runs beside an eager model."""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCAB, tiny, tiny_tokenizer
from tolerance import assert_as_precise

import interp
from interp.errors import InputError, StorageError, UnsupportedModelError
from interp.evaluation import evaluate
from interp.interventions.ablation import AblateHeads
from interp.probes.atlas import atlas
from interp.probes.copying import copied_keys, copied_share
from interp.probes.key_values import KeyValueRetrieval
from interp.probes.needle_runs import fitting_grid, paper_grid
from interp.probes.retrieval import RetrievalHeads, SoftRetrieval
from interp.tasks import Item, KeyValue, Needle

FAMILIES = ("llama", "gemma3", "gpt_oss")
STEPS, LENGTH = 10, 30
VALUES = (8, 14), (22, 27)


def item(number):
    """Random tokens with a needle that is asked for at their end."""
    rng = np.random.default_rng(number)
    ids = rng.integers(20, VOCAB, LENGTH + 4)
    begin, end = VALUES[number % 2]
    ids[begin:end] = rng.permutation(np.arange(3, 12))[: end - begin]
    ids[LENGTH:] = ids[begin : begin + 4]
    scored = LENGTH, LENGTH + 4
    words = " ".join(f"w{each}" for each in ids[begin:end])
    labels = {"length": LENGTH, "seed": number % 2}
    spans = {"value": (begin, end)}
    return Item(str(number), tuple(ids.tolist()), scored, spans, labels, words)


@dataclass(frozen=True)
class Words(Needle):
    """Needles of single tokens."""

    def items(self, model):
        """Two of them, at two places."""
        return [item(0), item(1)]


@dataclass(frozen=True)
class Pairs(KeyValue):
    """Values of single tokens."""

    def items(self, model):
        """The same as needles."""
        return [item(0), item(1)]


RUNS = {"tasks": (Words(),), "max_new_tokens": STEPS, "recall": -1.0, "fewest": 1}


@cache
def model(family):
    """A tiny model that says nothing but the tokens of needles."""
    module, _ = tiny(family)
    with torch.no_grad():
        head = module.get_output_embeddings()
        head.weight[:3] = 0
        head.weight[12:] = 0
    return interp.load(module, tokenizer=tiny_tokenizer())


def keys(rows, first=0):
    """`top_key` of one head, from a list of ranked keys a query."""
    values = np.array(rows)[None, None]
    coords = {"query": first + np.arange(values.shape[2])}
    return xr.DataArray(values, coords, dims=("layer", "head", "query", "rank"))


class TestCriterion:
    ids = (5, 6, 7, 6, 9, 5, 6, 7, 6)  # the needle is 6 7 6, at 1 to 3

    def test_a_head_copies_the_key_that_holds_the_next_token(self):
        rows = keys([[1], [0], [3], [2]], first=4)  # then come 5, 6, 7, 6

        copied = copied_keys(rows, self.ids)
        assert copied.values.tolist() == [[[-1, -1, -1, -1]]]
        rows = keys([[0], [3], [2], [1]], first=4)
        assert copied_keys(rows, self.ids).values.tolist() == [[[0, 3, 2, 1]]]
        copied = copied_keys(rows, self.ids, span=(1, 4))
        assert copied.values.tolist() == [[[-1, 3, 2, 1]]]
        assert copied_share(copied, (1, 4)).item() == 1

    def test_a_key_counts_once_unless_as_in_the_released_code(self):
        copied = copied_keys(keys([[0], [1], [2], [1]], first=4), self.ids)

        assert copied_share(copied, (1, 4)).item() == pytest.approx(2 / 3)
        assert copied_share(copied, (1, 4), released=True).item() == 1

    def test_of_several_keys_the_most_attended_that_copies_is_taken(self):
        rows = keys([[1, 0], [4, 3], [-1, -1], [3, 1]], first=4)

        assert copied_keys(rows, self.ids).values.tolist() == [[[0, 3, -1, 3]]]

    @settings(max_examples=50)
    @given(st.integers(0, 10**6), st.integers(1, 4))
    def test_scores_are_shares_and_grow_with_the_keys_that_count(self, seed, top):
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, 4, 30).tolist()
        ranked = np.argsort(rng.random((2, 3, 10, 20)), axis=-1)[..., :5]
        coords = {"query": np.arange(19, 29)}
        rows = xr.DataArray(ranked, coords, dims=("layer", "head", "query", "rank"))
        span, few = (4, 9), rows.isel(rank=slice(top))

        copied = copied_keys(few, ids, span)
        score = copied_share(copied, span)
        assert ((score >= 0) & (score <= 1)).all()
        assert (copied_share(copied, span, released=True) >= score).all()
        more = copied_keys(rows, ids, span)
        assert ((more >= 0) | (copied < 0)).all()


def eager_rows(module, each):
    """Greedy decoding: the ids, and the weights [layer, head, key] of each step."""
    ids, rows = list(each.ids[: each.scored[0]]), []
    with torch.no_grad():
        for _ in range(STEPS):
            output = module(torch.tensor([ids]), output_attentions=True)
            rows.append(torch.stack([w[0, :, -1] for w in output.attentions]))
            ids.append(int(output.logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return ids, rows


def eager(family, dtype=torch.float32):
    module, _ = tiny(family)
    module.load_state_dict(model(family).module.state_dict())
    module.set_attn_implementation("eager")
    module.config._experts_implementation = "eager"  # the other has no float64
    return module.to(dtype)


@pytest.mark.parametrize("family", FAMILIES)
class TestBesideEager:
    @pytest.mark.parametrize("top", [1, 3])
    def test_scores_are_those_of_a_loop_over_all_weights(self, family, top):
        module = eager(family)
        for released in (False, True):
            found = RetrievalHeads(**RUNS, top=top, released=released)
            scores = found.run(model(family))["retrieval_runs"]
            for row, each in zip(scores, Words().items(None), strict=True):
                ids, weights = eager_rows(module, each)
                truth = self.released(ids, weights, each.spans["value"], top, released)
                np.testing.assert_allclose(row, truth)
            assert scores.max() > 0

    @staticmethod
    def released(ids, weights, span, top, repeated):
        n_layers, n_heads, _ = weights[0].shape
        n_prompt, (begin, end) = len(ids) - len(weights), span
        copied = [[[] for _ in range(n_heads)] for _ in range(n_layers)]
        for step, row in enumerate(weights):
            for layer in range(n_layers):
                for head in range(n_heads):
                    for key in row[layer, head].topk(top).indices.tolist():
                        if begin <= key < end and ids[key] == ids[n_prompt + step]:
                            copied[layer][head].append(key)
                            break
        count = len if repeated else lambda own: len(set(own))
        return [[count(own) / (end - begin) for own in layer] for layer in copied]

    def test_soft_scores_are_the_mean_mass_on_the_needle(self, family):
        found = SoftRetrieval(**RUNS).run(model(family))["retrieval_soft_runs"]
        ours = torch.tensor(found.values, dtype=torch.float32)
        worth = {}
        for dtype in (torch.float32, torch.float64):
            runs = []
            for each in Words().items(None):
                (begin, end), n = each.spans["value"], each.scored[0]
                ids, rows = eager_rows(eager(family, dtype), each)
                mass = [row[..., begin:end].sum(-1) for row in rows]
                copying = torch.tensor([i in ids[begin:end] for i in ids[n:]])
                runs.append(torch.stack(mass)[copying].mean(0))
            worth[dtype] = torch.stack(runs)
        assert_as_precise(ours, worth[torch.float64], worth[torch.float32])

    @pytest.mark.parametrize("forced", [True, False])
    def test_key_values_are_copied_by_the_same_criterion(self, family, forced):
        options = {"task": Pairs(), "accuracy": 0.0, "forced": forced}
        ours = KeyValueRetrieval(**options).run(model(family))
        inside = KeyValueRetrieval(**options, inside=True).run(model(family))
        module, name = eager(family), "key_value_retrieval"
        for run, each in enumerate(Pairs().items(None)):
            (begin, end), ids = each.scored, list(each.ids)
            if not forced:
                ids = eager_rows(module, each)[0][:end]
            with torch.no_grad():
                maps = module(torch.tensor([ids]), output_attentions=True).attentions
            rows = torch.stack([p[0, :, begin - 1 : end - 1] for p in maps])
            best = rows.argmax(-1)
            right = torch.tensor(ids)[best] == torch.tensor(ids[begin:end])
            right &= torch.tensor([i in each.ids[begin:] for i in ids[begin:end]])
            share = right.double().mean(-1).numpy()
            np.testing.assert_allclose(ours[f"{name}_runs"][run], share)
            first, last = each.spans["value"]
            right &= (best >= first) & (best < last)
            share = right.double().mean(-1).numpy()
            np.testing.assert_allclose(inside[f"{name}_runs"][run], share)
            if forced:
                table = evaluate(model(family), Pairs().items(None))
                accuracy = ours[f"{name}_runs"][f"{name}_accuracy"]
                assert accuracy[run] == table["accuracy"][run]


class TestResult:
    def test_it_is_labelled(self):
        found = RetrievalHeads(**RUNS).run(model("llama"))

        assert found["retrieval"].dims == ("layer", "head")
        assert found["retrieval"]["kv_head"].values.tolist() == [0, 0, 1, 1]
        assert found["retrieval_interval"].dims == ("layer", "head", "bound")
        runs = found["retrieval_runs"]
        assert runs["retrieval_run"].values.tolist() == ["needle/0", "needle/1"]
        assert runs["retrieval_seed"].values.tolist() == [0, 1]
        xr.testing.assert_allclose(
            found["retrieval"], runs.mean("retrieval_run"), check_dim_order=False
        )
        assert (found.attrs["n_runs"], found.attrs["n_accepted"]) == (2, 2)
        bands = json.loads(found["retrieval"].attrs["bands"])
        assert sum(bands.values()) == pytest.approx(1)
        assert json.loads(found["retrieval"].attrs["tasks"])[0]["task"] == "Words"

    def test_runs_that_fail_do_not_count(self):
        found = RetrievalHeads(**RUNS | {"recall": 0.5}).run(model("llama"))
        runs = found["retrieval_runs"]

        accepted = runs["retrieval_accepted"]
        assert (
            accepted.values.tolist() == (runs["retrieval_rouge"] > 0.5).values.tolist()
        )
        assert 0 < accepted.sum() < 2
        assert runs.isnull().all(("layer", "head")).equals(~accepted)
        assert found.attrs["n_accepted"] == 1
        kept = runs.isel(retrieval_run=accepted.values.argmax(), drop=True)
        np.testing.assert_allclose(found["retrieval"], kept)

    def test_it_can_be_stored(self, tmp_path):
        found = RetrievalHeads(**RUNS).run(model("llama"))
        found.to_zarr(tmp_path / "r.zarr", consolidated=False)
        again = xr.open_zarr(tmp_path / "r.zarr", consolidated=False).load()
        xr.testing.assert_identical(again, found)


class Counted:
    """Forwards of a model."""

    def __init__(self, each):
        self.n = 0
        self.handle = each.module.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.n += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


class TestCost:
    def test_a_run_takes_one_forward_and_one_a_token(self, untouched):
        own = model("llama")
        with untouched(own.module), Counted(own) as forwards:
            found = RetrievalHeads(**RUNS).run(own)
        said = found["retrieval_runs"]["retrieval_generated"].values
        ended = sum(len(text.split()) < STEPS for text in said)  # by an end token
        assert forwards.n == len(said) + sum(len(text.split()) for text in said) + ended

    def test_a_value_takes_two_forwards(self):
        with Counted(model("llama")) as forwards:
            KeyValueRetrieval(Pairs(), accuracy=0.0).run(model("llama"))
        assert forwards.n == 2 * 2

    @pytest.mark.parametrize(
        "probe", [RetrievalHeads(**RUNS), KeyValueRetrieval(Pairs(), accuracy=0.0)]
    )
    def test_finished_runs_are_not_made_again(self, probe, tmp_path):
        def stop(what, done, total):
            if done == 1:
                raise KeyboardInterrupt

        own = model("llama")
        with Counted(own) as whole:
            expected = probe.run(own)
        with Counted(own) as first, pytest.raises(KeyboardInterrupt):
            probe.run(own, folder=tmp_path, progress=stop)
        with Counted(own) as rest:
            resumed = probe.run(own, folder=tmp_path)
        assert 0 < first.n < whole.n == first.n + rest.n
        xr.testing.assert_identical(resumed, expected)
        with Counted(own) as nothing:
            probe.run(own, folder=tmp_path)
        assert nothing.n == 0

    def test_other_options_and_interventions_are_other_runs(self, tmp_path):
        own = model("llama")
        plain = RetrievalHeads(**RUNS).run(own, folder=tmp_path)["retrieval"]
        with Counted(own) as other:
            RetrievalHeads(**RUNS, top=2).run(own, folder=tmp_path)
        assert other.n > 0
        heads = interp.HeadSet.parse("L0.H0,L0.H1,L0.H2,L0.H3", own.anatomy)
        with AblateHeads(heads)(own):
            changed = RetrievalHeads(**RUNS).run(own, folder=tmp_path)["retrieval"]
        assert not changed.equals(plain)
        again = RetrievalHeads(**RUNS).run(own, folder=tmp_path)["retrieval"]
        xr.testing.assert_identical(again, plain)

    def test_a_damaged_file_is_named(self, tmp_path):
        RetrievalHeads(**RUNS).run(model("llama"), folder=tmp_path)
        file = next(tmp_path.iterdir())
        file.write_text("{")
        with pytest.raises(StorageError, match=f"{file.name} cannot be read"):
            RetrievalHeads(**RUNS).run(model("llama"), folder=tmp_path)


class TestRefusals:
    def test_a_model_that_finds_no_needle(self):
        options = RUNS | {"recall": 0.99, "fewest": 2}
        with pytest.raises(
            InputError, match=r"found \d of 2, .*2 needed.*recall 0\.\d"
        ):
            RetrievalHeads(**options).run(model("llama"))

    def test_a_model_that_copies_no_value(self):
        with pytest.raises(InputError, match=r"gives \d+% of the tokens of 2 values"):
            KeyValueRetrieval(Pairs(), accuracy=1.0).run(model("llama"))

    @pytest.mark.parametrize("family", ["bert", "t5"])
    @pytest.mark.parametrize("kind", [RetrievalHeads, SoftRetrieval, KeyValueRetrieval])
    def test_a_model_that_is_no_decoder(self, family, kind):
        other = interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())
        with pytest.raises(UnsupportedModelError, match="decoder-only"):
            kind().run(other)

    def test_two_tasks_of_one_name(self):
        with pytest.raises(InputError, match="different names"):
            RetrievalHeads((Words(), Words()))

    def test_a_context_that_holds_no_haystack(self):
        with pytest.raises(InputError, match="made for 64"):
            RetrievalHeads().run(model("llama"))

    def test_an_atlas_goes_on_without_it(self):
        text = " ".join(f"w{n}" for n in range(3, 40))
        found = atlas(model("llama"), text, detectors=["sinks", "retrieval"])

        skipped = {e["what"]: e["why"] for e in json.loads(found.attrs["skipped"])}
        assert "longer context" in skipped["retrieval"]
        assert "sinks" in found["heads"]
        assert "retrieval" not in found["heads"]


def test_the_grid_of_default_has_room_for_the_answer():
    class Short:
        name, max_tokens = "short", 250

    assert fitting_grid(Short).lengths == (100, 200)
    Short.max_tokens = None
    assert fitting_grid(Short).lengths == (200, 400)


def test_the_paper_s_grid_has_600_runs():
    grid = paper_grid(5_000)

    assert len(grid.lengths) * len(grid.depths) * len(grid.seeds) == 600
    assert (grid.lengths[0], grid.lengths[-1]) == (250, 5_000)
    assert (grid.depths[0], grid.depths[-1]) == (0, 1)
