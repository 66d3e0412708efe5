"""Probes that need the model: by name, in `detect`, and in an atlas beside the rest."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tiny_models import N_HEADS, N_LAYERS, tiny, tiny_tokenizer

import interp
from interp.errors import InputError, NotCapturedError
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.losses import token_losses
from interp.neurons import down_projection
from interp.probes import TEXT_EXPERIMENTS, detect
from interp.probes.atlas import atlas
from interp.probes.contributions import neuron_writes
from interp.probes.expected_attention import ExpectedAttention
from interp.probes.head_influence import HeadInfluence
from interp.probes.reading import Bootstrap
from interp.probes.writing import COLUMNS, NO_NEURON, Writers, writers
from interp.tasks.texts import stretches

FIRST = "w5 w9 w33 w7 w61 w12 w80 w9 w5 w9 w14 w3"
TEXTS = {"first": FIRST, "second": "w8 w70 w5 w9 w33 w7 w21 w44"}
NEURON, CHANNEL, TOKEN = 11, 7, 4
INFLUENCE = HeadInfluence((FIRST * 3,), max_tokens=12, stretches=2)
NAMES = ("expected_attention", "writers")


@cache
def model(family="llama"):
    return interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def planted():
    """A model whose block 0 writes a massive activation through one neuron."""
    made = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    told = neuron_writes(made, FIRST, 0, (TOKEN, CHANNEL))
    matrix = down_projection(made.module, made.anatomy, 0).weight
    with torch.no_grad():
        matrix[CHANNEL, NEURON] = 3000 / told["activation"].values[NEURON]
    return made


@pytest.fixture(scope="module")
def tree(planted):
    chosen = ["sinks", "expected_attention", Writers(ratio=200, top=2)]
    return atlas(planted, TEXTS, detectors=chosen)


@pytest.fixture(scope="module")
def found():
    return INFLUENCE.run(model())


def skipped(found):
    return {each["what"]: each["why"] for each in json.loads(found.attrs["skipped"])}


class TestInAnAtlas:
    def test_what_is_over_tokens_stands_in_the_node_of_its_text(self, tree, planted):
        for key, text in zip(("text_0", "text_1"), TEXTS.values(), strict=True):
            own = tree[key]["expected_attention"]
            alone = ExpectedAttention()(planted, text).mean("head", dtype="float64")
            assert own.dims == ("layer", "token")
            assert "mean over heads" in own.attrs["long_name"]
            np.testing.assert_array_equal(own.values, alone.values)
            assert "sink_share" in tree[key]

    def test_what_is_of_the_model_has_a_node_of_its_own(self, tree):
        node = tree["writers"].to_dataset()
        first = node.isel(writer=0)
        said = [first[name].item() for name in ("role", "block", "half", "neuron")]
        assert said == ["writer", 0, "mlp", NEURON]
        assert first["channel"] == CHANNEL
        assert first["weight_rank"] == 1
        assert first["writers"] == pytest.approx(1, abs=0.05)
        assert node["writers_texts"].dims == ("writer", "writers_text")
        assert node["writers_text"].values.tolist() == ["text_0", "text_1"]

    def test_an_atlas_with_them_survives_its_store(self, tree, tmp_path):
        tree.to_zarr(tmp_path / "a.zarr", consolidated=False)
        again = xr.open_datatree(tmp_path / "a.zarr", engine="zarr", consolidated=False)
        xr.testing.assert_identical(again.load(), tree)

    def test_without_being_asked_for_none_runs(self):
        found = atlas(model(), FIRST, seeds=())
        assert not set(TEXT_EXPERIMENTS) & (set(found.children) | set(found["text_0"]))

    def test_a_text_that_does_not_suit_is_named_and_the_others_count(self):
        texts = TEXTS | {"short": "w5 w9"}
        found = atlas(model(), texts, detectors=["expected_attention"])
        assert "expected_attention" in found["text_0"]
        assert "expected_attention" not in found["text_2"]
        assert skipped(found)["expected_attention"].startswith("short: ")

    @pytest.mark.parametrize("family", ["bert", "gpt2"])
    def test_what_a_model_cannot_answer_is_named_and_the_rest_goes_on(self, family):
        names = ["entropy", "influence", *NAMES]
        found = atlas(model(family), FIRST, detectors=names)
        reasons = skipped(found)
        assert "entropy" in found["heads"]
        assert ("influence" in reasons) == (family == "bert")
        assert reasons.keys() >= set(NAMES)
        assert "none has an activation" in reasons["writers"] or family == "bert"


class TestDetect:
    def test_one_text_gives_its_tokens_beside_heads(self, planted):
        chosen = ["sinks", "expected_attention", Writers(ratio=200)]
        found = detect(planted, chosen, texts=FIRST)
        assert set(found["sinks"].dims) == {"layer", "head"}
        assert found["expected_attention"].dims == ("layer", "token")
        assert found["writers"].dims == ("writer",)
        assert found["writers_interval"].dims == ("writer", "bound")
        assert skipped(found) == {}

    def test_of_several_texts_it_says_where_the_tokens_are(self):
        found = detect(model(), ["sinks", "expected_attention"], texts=TEXTS)
        assert "expected_attention" not in found
        assert "a node for every text" in skipped(found)["expected_attention"]

    @pytest.mark.parametrize("name", [*NAMES, "influence"])
    def test_a_trace_will_not_do(self, name):
        with pytest.raises(NotCapturedError, match=rf"detect\(model, '{name}'\)"):
            detect(interp.trace(model(), FIRST), name)


class TestWriters:
    def table(self, *rows):
        filled = [dict.fromkeys(COLUMNS, 1.0) | {"half": "mlp"} | row for row in rows]
        table = pd.DataFrame(filled, columns=list(COLUMNS))
        return table.astype({"neuron": "Int64", "weight_rank": "Int64"})

    def over(self, **tables):
        return Writers().over_texts(tables, Bootstrap(resamples=50))["writers"]

    def test_shares_are_means_over_the_texts_that_name_the_neuron(self):
        one = {"role": "writer", "neuron": 3, "contribution": 50.0}
        two = {"role": "writer", "neuron": 4, "contribution": 9.0}
        found = self.over(
            a=self.table(one | {"share": 0.8}, two | {"share": 0.1}),
            b=self.table(one | {"share": 0.6}),
            c=self.table(),
        )
        assert found["neuron"].values.tolist() == [3, 4]
        assert found["writers"].values == pytest.approx([0.7, 0.1])
        assert found["n_texts"].values.tolist() == [2, 1]
        assert found["writers_interval"].values[0] == pytest.approx([0.6, 0.8])
        assert np.isnan(found["writers_interval"].values[1]).all()
        assert found["writers_texts"].isnull().sum("writer").values.tolist() == [
            0,
            1,
            2,
        ]
        assert "3 texts" in found["writers"].attrs["interval"]

    def test_writers_come_before_erasers_and_the_largest_first(self):
        found = self.over(
            a=self.table(
                {"role": "eraser", "neuron": 9, "contribution": -90.0},
                {"role": "writer", "neuron": 3, "contribution": 5.0},
                {"role": "writer", "neuron": 4, "contribution": 80.0},
            )
        )
        assert found["neuron"].values.tolist() == [4, 3, 9]
        assert found["writers"].attrs["interval"] == "none: one text"

    def test_of_a_text_that_names_a_neuron_twice_the_largest_peak_counts(self):
        row = {"role": "writer", "neuron": 3}
        found = self.over(
            a=self.table(row | {"share": 0.9, "token": 0}, row | {"share": 0.2})
        )
        assert found["writers"].values.tolist() == [0.9]

    def test_attention_that_writes_has_no_neuron(self):
        row = {"role": "writer", "half": "attention", "written": 700.0}
        lacking = ("neuron", "weight", "weight_rank", "share", "contribution")
        found = self.over(a=self.table(row | dict.fromkeys(lacking, np.nan)))
        assert found["neuron"].values.tolist() == [NO_NEURON]
        assert found["written"].values.tolist() == [700]
        assert np.isnan(found["writers"].values).all()

    def test_it_is_what_the_function_says(self, planted):
        ours = Writers(ratio=200)
        found = ours.over_texts({"a": ours(planted, FIRST)}, Bootstrap())["writers"]
        table = ours(planted, FIRST)
        row = table[table["neuron"] == NEURON].iloc[0]
        own = found.isel(writer=found["neuron"].values.tolist().index(NEURON))
        assert own["writers"] == row["share"]
        assert own["contribution"] == row["contribution"]
        pd.testing.assert_frame_equal(
            writers(model(), FIRST), Writers()(model(), FIRST)
        )

    def test_without_massive_activations_the_reason_is_given(self):
        with pytest.raises(InputError, match="of 2 read texts none"):
            self.over(a=self.table(), b=self.table())


class TestHeadInfluence:
    def test_it_is_the_relative_rise_under_a_uniform_head(self, found):
        for n, cut in enumerate(stretches(model(), "", FIRST * 3, 12)[:2]):
            for layer, head in ((0, 1), (1, 3)):
                heads = HeadSet.of([(layer, head)], model().anatomy)
                edit = AblateHeads(heads, "uniform")
                [(_, nats)] = token_losses(model(), [(cut,)], [edit])
                base, masked = nats.sum(1)
                own = found["influence_runs"].values[n, layer, head]
                assert own == pytest.approx((masked - base) / base, abs=1e-9)
            assert found["influence_nll"].values[n] == pytest.approx(nats[0].mean())

    def test_it_is_the_mean_over_stretches_with_an_interval(self, found):
        assert found["influence"].shape == (N_LAYERS, N_HEADS)
        runs = found["influence_runs"]
        np.testing.assert_allclose(found["influence"], runs.mean("influence_run"))
        low, high = found["influence_interval"].transpose("bound", ...)
        assert (low <= found["influence"]).all()
        assert (high >= found["influence"]).all()
        assert "2 stretches" in found["influence"].attrs["interval"]

    def test_finished_layers_are_not_run_again(self, found, tmp_path, monkeypatch):
        first = INFLUENCE.run(model(), folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == N_LAYERS
        monkeypatch.setattr(
            "interp.probes.head_influence.block_sums",
            lambda *_: pytest.fail("every layer is there"),
        )
        told = []
        again = INFLUENCE.run(
            model(), folder=tmp_path, progress=lambda *step: told.append(step)
        )
        assert again.identical(first)
        assert again["influence"].equals(found["influence"])
        assert told[-1] == ("influence", N_LAYERS, N_LAYERS)

    @pytest.mark.parametrize("option", [{"max_tokens": 3}, {"stretches": 0}])
    def test_stretches_without_anything_to_predict_are_refused(self, option):
        with pytest.raises(InputError, match="4 tokens or more"):
            HeadInfluence(**option)
