"""A rhythm from the command line: what is read, refused, and how a stop is survived."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from command_line import (
    copy,
    made,
    refused,
    run,
    save,
    says,
    words,
    write_words,
)

import interp
from interp.app import rhythm as app_rhythm
from interp.probes.credit_assignment import credit
from interp.probes.preplan import rhythm
from interp.probes.reach import Reach
from interp.probes.rhythm import Rhythm
from interp.tasks import Item

OUTPUTS = {"run.json", "chains", "rhythm.zarr", "tokens.csv", "coupling.csv"}
OUTPUTS |= {"index.html"}
CHAINS = [
    {"prompt": words(6, 1), "response": f" {words(30, 2)}"},
    {"prompt": words(9, 3), "response": f" {words(24, 4)}"},
    {"prompt": words(5, 5)},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rhythm")
    lines = "".join(json.dumps(line) + "\n" for line in CHAINS)
    (folder / "chains.jsonl").write_text(lines, "utf-8")
    return folder


@pytest.fixture(scope="module")
def command(llama, place):
    """The command without its folder."""
    text = write_words(place / "text.txt")
    options = ["--text", text, "--text", place / "chains.jsonl", "--new-tokens", 14]
    return ["rhythm", llama, *options, "--temperature", 3, "--out"]


@pytest.fixture(scope="module")
def whole(command, place):
    """A finished rhythm; tests that change it take a copy."""
    out = place / "whole"
    assert made(*command, out) == str(out / "index.html")
    return out


@pytest.fixture(scope="module")
def found(whole):
    with xr.open_dataset(
        whole / "rhythm.zarr", engine="zarr", consolidated=False
    ) as kept:
        return kept.load()


class TestOutputs:
    def test_the_folder_holds_these(self, whole):
        assert {path.name for path in whole.iterdir()} == OUTPUTS

    def test_the_numbers_are_those_of_the_function(self, found, llama, place):
        model = interp.load(llama, device="cpu")
        tokens = [
            model.tokenizer(each)["input_ids"]
            for each in ((place / "text.txt").read_text(), *_texts())
        ]
        firsts = [1, 6, 9]
        names = ["text.txt", "chains.jsonl 1", "chains.jsonl 2"]
        items = [
            Item(name, tuple(ids), (first, len(ids)))
            for name, ids, first in zip(names, tokens, firsts, strict=True)
        ]
        wanted = rhythm(model, items)
        assert found["chain"].values.tolist()[:3] == names
        for name in ("waad", "fai", "entropy", "span", "kurtosis", "observed"):
            ours = found[name].isel(chain=slice(3))
            ours = ours.isel(token=slice(wanted.sizes["token"]), missing_dims="ignore")
            np.testing.assert_array_equal(ours, wanted[name], err_msg=name)
        for kind in ("local", "global", "coupled"):
            np.testing.assert_array_equal(found[f"credit_{kind}"], credit(found, kind))

    def test_what_is_not_given_is_written_by_the_model(self, found):
        last = found.sel(chain="chains.jsonl 3")
        assert last["prompt_tokens"] == 5
        assert 1 <= last["n_tokens"] <= 14
        assert last["prompt_text"].item() == CHAINS[2]["prompt"]

    def test_the_table_has_a_row_for_each_token(self, whole, found):
        table = pd.read_csv(whole / "tokens.csv")
        assert len(table) == int(found["n_tokens"].sum())
        own = table[table["chain"] == "chains.jsonl 2"]
        chain = found.sel(chain="chains.jsonl 2").isel(token=slice(len(own)))
        assert own["token"].tolist() == list(range(24))
        assert own["position"].tolist() == list(range(9, 33))
        assert own["text"].tolist() == words(24, 4).split()
        np.testing.assert_allclose(own["waad"], chain["waad"])
        fai = chain["fai"].sel(horizon="10-50")
        np.testing.assert_allclose(own["fai 10-50"], fai)
        marks = chain["anchor"].sel(horizon="0-end")
        assert own["anchor 0-end"].tolist() == marks.values.astype(bool).tolist()

    def test_coupling_is_told_of_all_chains_and_of_each(self, whole, found):
        table = pd.read_csv(whole / "coupling.csv").set_index(
            ["chain", "link", "horizon"]
        )
        names = ["all", *found["chain"].values]
        assert table.index.unique("chain").tolist() == names
        row = {"link": "follows", "horizon": "10-50"}
        together = table.loc[("all", *row.values())]
        assert together["lift"] == pytest.approx(found["mean_lift"].sel(row).item())
        bounds = found["lift_interval"].sel(row).values
        assert together[["low", "high"]].tolist() == pytest.approx(bounds.tolist())
        alone = table.loc[("chains.jsonl 1", *row.values())]
        wanted = found["p"].sel(row | {"chain": "chains.jsonl 1"}).item()
        assert alone["p"] == pytest.approx(wanted)

    def test_the_record_says_what_was_run(self, whole):
        record = json.loads((whole / "run.json").read_text("utf-8"))
        assert record["finished"]
        assert record["command"].startswith("interp rhythm")
        assert set(record["inputs"]) == {"text.txt", "chains.jsonl"}
        assert record["options"]["horizons"] == [[10, 50], [10, 100], [0, None]]
        assert set(record["timings"]) == {"load_s", "generate_s", "trace_s", "write_s"}


def _texts():
    return [each["prompt"] + each["response"] for each in CHAINS[:2]]


def same(folder, whole):
    """Whether two folders have the same tables and page."""
    for name in ("tokens.csv", "coupling.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (
        (each / "index.html").read_text("utf-8") for each in (folder, whole)
    )
    return ours.replace(str(folder), "") == theirs.replace(str(whole), "")


class TestAgain:
    def test_a_finished_rhythm_is_not_made_again(self, command, whole, monkeypatch):
        monkeypatch.setattr(app_rhythm, "trace_chain", None)
        assert made(*command, whole) == str(whole / "index.html")

    def test_what_was_finished_is_not_read_again(
        self, command, whole, tmp_path, monkeypatch
    ):
        out, read = copy(whole, tmp_path / "out"), []
        (out / "index.html").unlink()
        stores = sorted((out / "chains").glob("*.zarr"))
        assert len(stores) == 4
        stores[0].rename(tmp_path / "lost")
        trace = app_rhythm.trace_chain
        monkeypatch.setattr(
            app_rhythm,
            "trace_chain",
            lambda *given, **more: read.append(given) or trace(*given, **more),
        )
        made(*command, out)
        assert len(read) == 1
        assert same(out, whole)

    def test_ctrl_c_keeps_what_was_read(self, command, whole, tmp_path, monkeypatch):
        out, trace = tmp_path / "out", app_rhythm.trace_chain

        def stopped(model, item, *given, **more):
            if item.name == "chains.jsonl 2":
                raise KeyboardInterrupt
            return trace(model, item, *given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(app_rhythm, "trace_chain", stopped)
            assert run(*command, out).code == 130
        assert len(list((out / "chains").glob("*.zarr"))) == 2
        made(*command, out)
        assert same(out, whole)

    def test_another_runs_folder_is_left_alone(self, command, whole):
        said = refused(*command, whole, "--exclude-sink")
        assert says(said, "another rhythm", "exclude_sink", "--out")


class TestOptions:
    def test_a_prompt_is_framed_unless_it_is_raw(self, llama, tmp_path):
        out = tmp_path / "out"
        options = ["--prompt", "w5 w9 w7", "--raw", "--new-tokens", 12, "--seed", 3]
        made("rhythm", llama, *options, "--layers", "0,1", "--out", out)
        with xr.open_dataset(
            out / "rhythm.zarr", engine="zarr", consolidated=False
        ) as found:
            assert found["chain"].values.tolist() == ["prompt 1"]
            assert found["prompt_text"].values.tolist() == ["w5 w9 w7"]
        # Of a response so short no token is ten tokens before the next.
        page = (out / "index.html").read_text("utf-8")
        assert "One text has no interval" in page

    def test_heads_are_taken_of_some_layers(self, llama, place, tmp_path):
        out = tmp_path / "out"
        options = ["--layers", "1", "--exclude-sink", "--max-tokens", 30]
        made("rhythm", llama, "--text", place / "text.txt", *options, "--out", out)
        table = pd.read_csv(out / "tokens.csv")
        assert len(table) == 29
        model = interp.load(llama, device="cpu")
        ids = model.tokenizer((place / "text.txt").read_text())["input_ids"][:30]
        reach = Reach(layers=(1,), exclude_sink=True)
        wanted = rhythm(model, Item("a", tuple(ids), (1, 30)), Rhythm(reach))
        np.testing.assert_allclose(table["waad"], wanted["waad"][0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "{text}", "--prompt", "w5"], ("were both given",)),
        (["--text", "{text}", "--layers", "top"], ("'top'", "10,12,15")),
        (["--text", "{text}", "--layers", "0,7"], ("(0, 7)", "0 to 1")),
        (["--text", "{text}", "--max-tokens", "1"], ("text.txt", "has 1")),
        (["--text", "{long}"], ("long.txt has 70 tokens", "--max-tokens 64")),
        (["--text", "{none}"], ("does not exist",)),
        (["--text", "{bad}"], ("line 1", "'question' and 'prompt'")),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(options, said, llama, place, tmp_path):
    files = {
        "text": write_words(place / "text.txt"),
        "long": write_words(tmp_path / "long.txt", 70),
        "none": tmp_path / "none.txt",
        "bad": tmp_path / "bad.jsonl",
    }
    files["bad"].write_text("{}\n")
    given = [each.format(**files) for each in options]
    line = refused("rhythm", llama, *given, "--out", tmp_path / "out")
    assert says(line, *said)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_causal_order_is_refused(tmp_path, place):
    bert = save(tmp_path, "bert")
    said = refused(
        "rhythm", bert, "--text", place / "text.txt", "--out", tmp_path / "o"
    )
    assert says(said, "decoder-only")
