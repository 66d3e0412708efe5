"""An atlas folder: what it holds, and what it refuses."""

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pandas as pd
import pytest
import xarray as xr
from command_line import (
    copy,
    files_of,
    made,
    refused,
    run,
    save,
    says,
    write_words,
)

import interp
from interp.probes import DETECTORS
from interp.probes.detector import HEADS

OUTPUTS = {"run.json", "traces", "atlas.zarr", "atlas.csv", "index.html"}
QUICK = ["--detectors", "sinks"]
"""One detector, which needs no random tokens."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def llama(root):
    return save(root, "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    write_words(folder / "words.txt", 60)
    return folder


@pytest.fixture(scope="module")
def whole(llama, place):
    """An atlas with every detector; tests that change it take a copy."""
    out = place / "whole"
    said = made("atlas", llama, "--text", place / "words.txt", "--out", out)
    assert said == str(out / "index.html")
    return out


@pytest.fixture(scope="module")
def quick(llama, place):
    """The command of an atlas with one detector, and its table."""
    command = ["atlas", llama, "--text", place / "words.txt", *QUICK, "--out"]
    made(*command, place / "quick")
    return command, (place / "quick" / "atlas.csv").read_bytes()


class TestOutputs:
    def test_the_folder_holds_these(self, whole):
        assert {path.name for path in whole.iterdir()} == OUTPUTS

    def test_the_record_tells_what_decided_the_results(self, whole, llama):
        record = json.loads((whole / "run.json").read_text())
        model = interp.load(llama, device="cpu")
        text = (whole.parent / "words.txt").read_bytes()
        assert record["model"] == "llama"
        assert record["model_hash"] == model.content_hash
        assert record["inputs"] == {"words.txt": hashlib.sha256(text).hexdigest()}
        assert record["device"] == "cpu"
        assert record["parameters"]["dtype"] == "float32"
        assert record["parameters"]["max_tokens"] is None
        assert record["parameters"]["seed"] == 0
        assert "induction" in record["parameters"]["detectors"]
        assert record["finished"] is True
        assert record["command"].startswith("interp atlas ")
        for package in ("interp", "torch", "transformers", "xarray", "zarr"):
            assert record["versions"][package] == version(package)
        assert all(seconds >= 0 for seconds in record["timings"].values())
        skipped = {each["what"]: each["why"] for each in record["skipped"]}
        assert "no learned sink" in skipped["learned_sinks"]

    def test_the_table_has_a_column_a_detector(self, whole):
        table = pd.read_csv(whole / "atlas.csv")
        record = json.loads((whole / "run.json").read_text())
        over_tokens = {name for name, kind in DETECTORS.items() if kind.dims != HEADS}
        skipped = {each["what"] for each in record["skipped"]} - set(table.columns)
        detectors = [
            name
            for name in record["parameters"]["detectors"]
            if name not in over_tokens | skipped
        ]
        columns = list(table.columns)
        assert columns[: 3 + len(detectors)] == ["layer", "head", "kv_head", *detectors]
        bounds = [f"{name}_{bound}" for name in detectors for bound in ("low", "high")]
        assert columns[3 + len(detectors) :] == bounds
        cells = list(zip(table["layer"], table["head"], strict=True))
        assert cells == [(layer, head) for layer in range(2) for head in range(4)]
        assert list(table["kv_head"]) == [0, 0, 1, 1] * 2
        assert table["induction"].between(0, 1).all()

    def test_the_store_is_a_tree_of_labelled_arrays(self, whole):
        tree = xr.open_datatree(whole / "atlas.zarr", engine="zarr", consolidated=False)
        assert {"heads", "text_0"} <= set(tree.children)
        table = pd.read_csv(whole / "atlas.csv")
        entropy = tree["heads"].to_dataset()["entropy"]
        assert entropy.attrs["units"] == "nats"
        assert entropy.values.ravel() == pytest.approx(table["entropy"].values)

    def test_the_page_refers_to_nothing_outside(self, whole):
        class References(HTMLParser):
            def handle_starttag(self, tag, attrs):
                assert tag not in {"iframe", "object", "embed", "base"}
                names = {"src", "href", "action", "data", "srcset", "poster"}
                found.extend(v for n, v in attrs if n in names and v)
                style = dict(attrs).get("style") or ""
                found.extend(re.findall(r"url\((.*?)\)", style))

        found: list[str] = []
        References().feed((whole / "index.html").read_text("utf-8"))
        assert not [each for each in found if not each.startswith("#")]

    def test_several_texts_have_intervals_over_texts(self, llama, place, tmp_path):
        texts = []
        for n in (20, 30, 40):
            texts += ["--text", write_words(tmp_path / f"{n}.txt", n)]
        made("atlas", llama, *texts, *QUICK, "--out", tmp_path / "out")
        tree = xr.open_datatree(
            tmp_path / "out" / "atlas.zarr", engine="zarr", consolidated=False
        )
        assert "3 texts" in tree["heads"]["sinks"].attrs["interval"]
        assert {"text_0", "text_1", "text_2"} <= set(tree.children)
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert list(record["inputs"]) == ["20.txt", "30.txt", "40.txt"]


class TestFolders:
    def test_the_same_model_by_another_path_is_the_same(self, whole, llama):
        text = whole.parent / "words.txt"
        other = llama / ".." / llama.name
        assert "complete" in run("atlas", other, "--text", text, "--out", whole).err

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            (["--max-tokens", "20"], "max_tokens: None; of this run: 20"),
            (["--seed", "1"], "seed: 0; of this run: 1"),
            (["--detectors", "sinks"], "of this run: sinks"),
            (["--dtype", "float64"], "dtype: float32; of this run: float64"),
        ],
    )
    def test_another_run_s_folder_is_refused(self, changed, said, whole, llama):
        before = files_of(whole)
        text = whole.parent / "words.txt"
        line = refused("atlas", llama, "--text", text, "--out", whole, *changed)
        assert says(line, "holds another atlas", said, "--out")
        assert files_of(whole) == before

    def test_another_text_or_model_is_refused(self, whole, llama, root, tmp_path):
        text = write_words(tmp_path / "words.txt", 20)
        line = refused("atlas", llama, "--text", text, "--out", whole)
        assert says(line, "inputs: words.txt")
        text = whole.parent / "words.txt"
        line = refused("atlas", save(root, "gpt2"), "--text", text, "--out", whole)
        assert says(line, "model: llama; of this run: gpt2")

    @pytest.mark.parametrize("name", ["notes.txt", "index.html", "run.json"])
    def test_a_folder_that_holds_something_else_is_kept(
        self, name, llama, place, tmp_path
    ):
        out = tmp_path / "mine"
        out.mkdir()
        (out / name).write_text('{"parameters": 1}')
        line = refused(
            "atlas", llama, "--text", place / "words.txt", "--out", out, *QUICK
        )
        assert says(line, "holds something else", name, "--out")
        assert files_of(out) == {name: b'{"parameters": 1}'}

    def test_an_empty_folder_and_one_with_notes_are_taken(self, quick, tmp_path):
        command, table = quick
        out = tmp_path / "out"
        out.mkdir()
        made(*command, out)
        (out / "notes.txt").write_text("mine")
        (out / "atlas.csv").unlink()
        made(*command, out)
        assert (out / "notes.txt").read_text() == "mine"
        assert (out / "atlas.csv").read_bytes() == table

    @pytest.mark.parametrize("below", ["", "x"])
    def test_a_place_that_cannot_be_written(self, below, quick, tmp_path):
        (tmp_path / "file").write_text("mine")
        line = refused(*quick[0], tmp_path / "file" / below)
        assert says(line, str(tmp_path / "file"), "another folder with --out")
        assert (tmp_path / "file").read_text() == "mine"

    def test_without_out_the_folder_is_named_by_the_model(
        self, llama, place, tmp_path, monkeypatch
    ):
        dotted = copy(llama, tmp_path / "Llama-3.2-1B")
        monkeypatch.chdir(tmp_path)
        made("atlas", dotted, "--text", place / "words.txt", *QUICK)
        assert (tmp_path / "atlas-Llama-3.2-1B" / "index.html").is_file()


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "gpt_oss", "modernbert"])
def test_a_family_gets_a_page_that_tells_what_was_skipped(
    family, root, place, tmp_path
):
    text = ["--text", place / "words.txt", "--max-tokens", 30]
    page = made("atlas", save(root, family), *text, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    table = pd.read_csv(tmp_path / "out" / "atlas.csv")
    shown = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert page == str(tmp_path / "out" / "index.html")
    assert len(table) == 8
    assert not table["entropy"].hasnans
    skipped = {each["what"] for each in record["skipped"]}
    assert ("learned_sinks" in skipped) == (family != "gpt_oss")
    if family != "gpt_oss":
        assert {"local", "global_head"} <= skipped
    for what in skipped:
        assert what in shown


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_on_the_shipped_text(tmp_path):
    # Experiments, which take longest, are run in test_probes_retrieval_real.
    quick = ",".join(name for name, kind in DETECTORS.items() if kind.by_default)
    out = tmp_path / "out"
    options = ["--max-tokens", 200, "--detectors", quick]
    page = made("atlas", "smollm2-135m", *options, "--out", out)
    assert page == str(out / "index.html")
    assert (out / "index.html").stat().st_size < 8_000_000
    table = pd.read_csv(out / "atlas.csv")
    assert len(table) == 30 * 9
    best = table.loc[int(table["induction"].argmax())]
    assert 17 <= best["layer"] <= 24
    strongest = made("heads", out, "--by", "induction", "--top", 1)
    assert f"L{best['layer']:.0f}.H{best['head']:.0f}" in strongest
