import json
from functools import cache

import hand_traces as hand
import numpy as np
import pytest
import tiny_models
import xarray as xr

import interp
from interp.errors import InputError
from interp.probes import DETECTORS
from interp.probes.activations import runs
from interp.probes.atlas import atlas, to_table
from interp.probes.detector import HEADS
from interp.probes.reading import Bootstrap, read, summarize
from interp.probes.sinks import Sinks, SinksAnywhere, SinkTokens

PER_HEAD = [
    name
    for name, kind in DETECTORS.items()
    if kind.dims == HEADS and kind.by_default and name != "learned_sinks"
]
"""What an atlas of a model without learned sinks has."""
LAYERS, N_HEADS = tiny_models.N_LAYERS, tiny_models.N_HEADS
TEXTS = {
    "first": " ".join(f"w{3 + query * query % 40}" for query in range(40)),
    "second": " ".join(f"w{3 + query * 7 % 30}" for query in range(25)),
}


@cache
def model(family="llama"):
    module, _ = tiny_models.tiny(family)
    return interp.load(module, tokenizer=tiny_models.tiny_tokenizer())


@cache
def of_two_texts():
    return atlas(model(), TEXTS, command="interp atlas tiny")


@cache
def of_one_text():
    return atlas(model(), TEXTS["first"])


def never(*_args, **_options):
    pytest.fail("nothing may be traced")


def skipped(found):
    return {each["what"]: each["why"] for each in json.loads(found.attrs["skipped"])}


@pytest.mark.parametrize("name", PER_HEAD)
def test_every_detector_has_a_mean_an_interval_and_its_texts(name):
    heads = of_two_texts()["heads"].to_dataset()
    mean = heads[name]

    assert mean.dims == HEADS
    assert mean.shape == (LAYERS, N_HEADS)
    assert heads[f"{name}_interval"].dims == (*HEADS, "bound")
    assert heads[f"{name}_texts"].dims == ("text", *HEADS)
    assert mean["kv_head"].values.tolist() == [0, 0, 1, 1]
    assert mean.attrs["site"] == "self"
    for key in ("units", "long_name", "source", "description", "python", "interval"):
        assert mean.attrs[key]


def test_the_mean_is_over_the_texts_of_the_detectors_own_task():
    heads = of_two_texts()["heads"].to_dataset()
    names = heads["text"].values.tolist()

    assert names == ["first", "second", *(f"repeated_random_{i}" for i in range(3))]
    for name, own in (("sinks", names[:2]), ("induction", names[2:])):
        texts = heads[f"{name}_texts"]
        np.testing.assert_allclose(heads[name], texts.sel(text=own).mean("text"))
        assert texts.notnull().all(HEADS).values.sum() == len(own)


def test_intervals_lie_within_the_texts_and_around_the_mean():
    heads = of_two_texts()["heads"].to_dataset()

    for name in ("sinks", "sinks_anywhere", "entropy", "induction"):
        low, high = heads[f"{name}_interval"].transpose("bound", ...)
        assert (low <= heads[name] + 1e-9).all()
        assert (high >= heads[name] - 1e-9).all()
        assert (low >= heads[f"{name}_texts"].min("text") - 1e-9).all()
        assert (high <= heads[f"{name}_texts"].max("text") + 1e-9).all()


def test_a_single_text_gives_intervals_over_its_stretches():
    heads = of_one_text()["heads"].to_dataset()

    assert "8 contiguous stretches" in heads["sinks"].attrs["interval"]
    assert "3 seeds" in heads["echo"].attrs["interval"]
    low, high = heads["sinks_interval"].transpose("bound", ...)
    assert (low < heads["sinks"]).all()
    assert (heads["sinks"] < high).all()


def test_what_has_no_interval_says_why():
    heads = of_one_text()["heads"].to_dataset()

    for name, why in (("sinks_anywhere", "queries"), ("global_head", "label")):
        assert heads[f"{name}_interval"].isnull().all()
        assert heads[name].attrs["interval"].startswith("none")
        assert why in heads[name].attrs["interval"]


def test_the_split_ranks_the_mean_distance():
    heads = of_two_texts()["heads"].to_dataset()
    labels = heads["global_head"].values
    distance = heads["distance"].values

    assert (labels == 1).sum() == (labels == -1).sum() == int(0.3 * LAYERS * N_HEADS)
    assert distance[labels == 1].min() > distance[labels == 0].max()
    assert distance[labels == -1].max() < distance[labels == 0].min()


@pytest.mark.parametrize("name", ["sinks", "sinks_anywhere", "global_head", "echo"])
def test_the_lines_that_reproduce_a_number_reproduce_it(name):
    heads = of_two_texts()["heads"].to_dataset()
    lines = heads[name].attrs["python"].splitlines()
    known = {"model": model(), "text": TEXTS["first"]}
    exec("\n".join(lines[:-1]), known)
    again = eval(lines[-1], known)
    first = heads[f"{name}_texts"].dropna("text").isel(text=0)

    np.testing.assert_allclose(again.transpose(*HEADS), first, rtol=1e-6)


def test_a_text_has_sinks_and_massive_activations_token_by_token():
    found = of_two_texts()["text_1"].to_dataset()
    n_tokens = len(TEXTS["second"].split())

    assert found.attrs["name"] == "second"
    assert found.attrs["n_tokens"] == n_tokens
    assert found["token_text"].values.tolist() == TEXTS["second"].split()
    assert dict(found.sizes) == {
        "layer": LAYERS,
        "token": n_tokens,
        "layer_residual": LAYERS + 1,
        "rank": 8,
    }
    assert found["massive"].dtype == found["massive_loose"].dtype == bool
    assert found["sink_share"].isnull().sum("token").values.tolist() == [7, 7]
    assert runs(found).empty


def test_the_root_says_where_the_numbers_come_from():
    attrs = of_two_texts().attrs

    assert attrs["model_type"] == "llama"
    assert (attrs["n_layers"], attrs["n_heads"], attrs["n_kv_heads"]) == (2, 4, 2)
    assert (attrs["n_texts"], attrs["epsilon"], attrs["seed"]) == (2, 0.3, 0)
    assert json.loads(attrs["versions"])["torch"]
    assert attrs["command"] == "interp atlas tiny"
    assert "sinks" in attrs["intervals"]


def test_a_shortened_task_and_a_detector_without_value_are_reported():
    why = skipped(of_two_texts())

    assert "15 tokens, not 256" in why["part of the repeated random tokens"]
    assert "no value" in why["local"]
    assert "no learned sink" in why["learned_sinks"]


def test_the_table_has_a_row_for_each_head_and_the_detectors_in_order():
    table = to_table(of_two_texts())
    columns = table.columns.tolist()

    assert columns[: 3 + len(PER_HEAD)] == ["layer", "head", "kv_head", *PER_HEAD]
    assert columns[3 + len(PER_HEAD) :] == [
        f"{name}_{bound}" for name in PER_HEAD for bound in ("low", "high")
    ]
    assert len(table) == LAYERS * N_HEADS
    row = table[(table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    sinks = of_two_texts()["heads"]["sinks"]
    assert row["kv_head"] == 1
    assert row["sinks"] == sinks.sel(layer=1, head=2).item()


def test_the_table_leaves_out_heads_that_do_not_exist_but_no_broken_layer():
    values = xr.DataArray(
        [[1.0, np.nan], [np.nan, np.nan]],
        dims=HEADS,
        coords={"layer": [0, 1], "head": [0, 1], "kv_head": ("head", [0, 1])},
    )
    bounds = values.expand_dims(bound=["low", "high"])
    heads = xr.Dataset({"sinks": values, "sinks_interval": bounds})
    table = to_table(xr.DataTree.from_dict({"heads": heads}))

    assert table[["layer", "head"]].values.tolist() == [[0, 0], [1, 0], [1, 1]]


def test_chosen_detectors_keep_their_options():
    chosen = ["sinks", SinksAnywhere(min_queries=2), SinkTokens(epsilon=0.05)]
    found = atlas(model(), TEXTS["second"], detectors=chosen)
    heads = found["heads"].to_dataset()

    assert [name for name in heads if name in DETECTORS] == ["sinks", "sinks_anywhere"]
    assert heads["sinks_anywhere"].attrs["min_queries"] == 2
    assert "SinksAnywhere(min_queries=2)" in heads["sinks_anywhere"].attrs["python"]
    assert found.attrs["epsilon"] == 0.05
    assert heads["text"].values.tolist() == ["text 0"]


def test_an_atlas_of_tokens_only_has_an_empty_table():
    found = atlas(model(), TEXTS["second"], detectors=["sink_tokens"])

    assert "sink_share" in found["text_0"]
    assert to_table(found).empty


def test_an_atlas_survives_its_store(tmp_path):
    of_two_texts().to_zarr(tmp_path / "atlas.zarr", consolidated=False)
    with xr.open_datatree(
        tmp_path / "atlas.zarr", engine="zarr", consolidated=False
    ) as again:
        xr.testing.assert_identical(again.load(), of_two_texts())


def test_a_second_run_reads_what_the_first_one_stored(tmp_path):
    told = []
    options = {
        "detectors": ["sinks", "induction"],
        "seeds": (5,),
        "store": tmp_path,
        "progress": lambda *step: told.append(step),
    }
    first = atlas(model(), TEXTS, **options)
    assert told[0] == ("first", 1, LAYERS)
    assert told[-1] == ("repeated_random_5", LAYERS, LAYERS)

    told.clear()
    again = atlas(model(), TEXTS, **options)
    assert not told
    xr.testing.assert_identical(again, first)


def test_an_encoder_is_read_where_there_is_no_decoder():
    found = atlas(model("bert"), TEXTS, seeds=(0,))

    assert found["heads"]["sinks"].attrs["site"] == "encoder"
    assert found["text_0"].attrs["site"] == "encoder"
    assert "look ahead" in skipped(found)["local"]
    assert "local" not in found["heads"]


def test_without_seeds_the_detectors_of_the_task_are_left_out():
    found = atlas(model(), TEXTS["second"], seeds=())

    assert "sinks" in found["heads"]
    assert "induction" not in found["heads"]
    assert "seed" in skipped(found)["induction"]


def test_no_text_is_refused():
    with pytest.raises(InputError, match="at least one text"):
        atlas(model(), [], trace=never)


def test_an_unknown_detector_is_refused_before_anything_is_traced():
    with pytest.raises(InputError, match="'sinks'"):
        atlas(model(), TEXTS, detectors=["sink"], trace=never)


def test_detectors_of_two_sites_are_refused():
    mixed = [Sinks(site="cross"), "sinks_anywhere"]

    with pytest.raises(InputError, match="None, cross"):
        atlas(model(), TEXTS, detectors=mixed, trace=never)


def test_the_interval_of_one_text_is_that_of_its_stretches():
    weights = np.stack([hand.uniform(17)[0, 0], hand.pointing([0] * 17)])[None]
    trace = hand.trace(self=hand.site(weights))
    reading = read("one", trace, [Sinks()], blocks=4)
    found = summarize(Sinks(), [reading], ["one"], Bootstrap(resamples=500))
    stretches = [
        np.mean([1 / (row + 1) for row in range(start, start + 4)])
        for start in (1, 5, 9, 13)
    ]

    np.testing.assert_allclose(
        reading.blocks["sinks"][0].sel(layer=0, head=0), stretches, rtol=1e-6
    )
    low, high = found["sinks_interval"].sel(layer=0, head=0).values
    assert stretches[-1] < low < found["sinks"].values[0, 0] < high < stretches[0]
    assert found["sinks_interval"].sel(layer=0, head=1).values.tolist() == [1, 1]
