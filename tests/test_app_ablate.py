"""An ablation folder: what it holds, and what it refuses."""

import json
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
from test_viz_report import Page

import interp
from interp.evaluation import evaluate
from interp.heads import HeadSet
from interp.interventions import AblateHeads
from interp.tasks import Texts

OUTPUTS = {"run.json", "sweeps", "effects.zarr", "ablation.csv", "index.html"}
TASKS = ["--task", "nll", "--task", "{task = 'repeated', block = 8, copies = 3}"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    write_words(folder / "words.txt", 200)
    return folder


@pytest.fixture(scope="module")
def command(llama, place):
    """The command without its folder."""
    text = ["--text", place / "words.txt"]
    return ["ablate", llama, "--heads", "L0.H1,L1.H2", *text, *TASKS, "--out"]


@pytest.fixture(scope="module")
def whole(command, place):
    """An ablation of two heads on two tasks; tests that change it take a copy."""
    out = place / "whole"
    assert made(*command, out) == str(out / "index.html")
    return out


@pytest.fixture(scope="module")
def table(whole):
    return pd.read_csv(whole / "ablation.csv")


class TestOutputs:
    def test_the_folder_holds_these(self, whole):
        assert {path.name for path in whole.iterdir()} == OUTPUTS

    def test_the_record_tells_what_decided_the_results(self, whole, llama):
        record = json.loads((whole / "run.json").read_text())
        model = interp.load(llama, device="cpu")
        assert record["model_hash"] == model.content_hash
        assert {"words.txt", "task nll", "task repeated"} == set(record["inputs"])
        assert record["parameters"] == {
            "heads": "L0.H1,L1.H2",
            "groups": False,
            "modes": ["zero"],
            "tasks": TASKS[1::2],
            "controls": None,
            "max_tokens": None,
            "seed": 0,
            "dtype": "float32",
        }
        assert record["finished"] is True
        assert record["command"].startswith("interp ablate ")
        assert record["versions"]["torch"] == version("torch")
        assert all(seconds >= 0 for seconds in record["timings"].values())
        [skipped] = record["skipped"]
        assert "9 different controls, fewer than 20" in skipped["why"]

    def test_a_row_for_each_task_and_metric_what_was_asked_first(self, table):
        asked = table["asked"].tolist()
        assert asked == sorted(asked, key=["before", "after"].index)
        first = table[table["asked"] == "before"]
        rows = list(zip(first["task"], first["metric"], strict=True))
        assert rows == [("nll", "nll"), ("repeated", "accuracy")]
        metrics = {"nll", "accuracy", "exact", "kl", "agreement"}
        assert set(table[table["task"] == "nll"]["metric"]) == metrics
        assert (table["n_controls"] == 9).all()
        assert table["p"].dropna().between(0, 1).all()

    def test_the_numbers_are_those_of_the_model_run_by_hand(self, table, llama, place):
        model = interp.load(llama, device="cpu")
        text = (place / "words.txt").read_text()
        items = Texts({"words.txt": text}).items(model)
        heads = HeadSet.parse("L0.H1,L1.H2", model.anatomy)
        base = evaluate(model, items)["nll"]
        with AblateHeads(heads)(model):
            ablated = evaluate(model, items)["nll"]
        row = table.iloc[0]
        assert row["base"] == pytest.approx(float(base.mean()), rel=1e-5)
        effect = float((ablated - base).mean())
        assert row["effect"] == pytest.approx(effect, rel=1e-3)
        assert row["n_items"] == len(items)

    def test_the_store_holds_items_effects_and_heads(self, whole, table):
        tree = xr.open_datatree(
            whole / "effects.zarr", engine="zarr", consolidated=False
        )
        items = tree["task_0"]["items"].to_dataset()
        assert items["nll"].dims == ("intervention", "item")
        assert items["intervention"].values[:3].tolist() == [
            "none",
            "zero",
            "zero control 1",
        ]
        assert items["nll"].attrs["units"] == "nats"
        effects = tree["task_0"]["effects"]["nll"].to_dataset()
        assert effects["effect"].item() == table["effect"].iloc[0]
        ablated = tree["heads"].to_dataset()["ablated"].values
        assert ablated.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
        assert tree["heads"].to_dataset()["drawn"].values.sum() == 18

    def test_the_page_refuses_what_a_random_model_cannot_do(self, whole):
        page = Page((whole / "index.html").read_text("utf-8"))
        assert page.open == []
        assert "nll: not interpreted" in page.words
        assert "repeated: not interpreted" in page.words
        assert "named in the command: L0.H1 L1.H2" in page.words
        assert all(link.startswith("#") for link in page.links)


class TestChoices:
    def ablated(self, llama, place, tmp_path, *options):
        text = ["--text", place / "words.txt", "--max-tokens", 60]
        made("ablate", llama, *text, *options, "--out", tmp_path / "out")
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        return record, pd.read_csv(tmp_path / "out" / "ablation.csv")

    @pytest.mark.parametrize("mode", ["mean", "resample", "uniform", "self"])
    def test_every_mode(self, mode, llama, place, tmp_path):
        options = ["--heads", "L1.H0", "--mode", mode]
        _, table = self.ablated(llama, place, tmp_path, *options)
        row = table[table["metric"] == "kl"].iloc[0]
        assert row["intervention"] == mode
        assert row["score"] > 1e-4

    def test_several_modes_are_one_family(self, llama, place, tmp_path):
        options = ["--heads", "L1.H0", "--mode", "zero", "--mode", "uniform"]
        record, table = self.ablated(llama, place, tmp_path, *options)
        assert record["parameters"]["modes"] == ["zero", "uniform"]
        assert table["intervention"].tolist()[:2] == ["zero", "uniform"]
        assert (table["p_holm"] >= table["p"]).all() | table["p"].isna().any()

    def test_by_detector_whole_groups(self, llama, place, tmp_path):
        options = ["--top", "sinks:1", "--groups"]
        record, _ = self.ablated(llama, place, tmp_path, *options)
        assert len(record["heads"].split(",")) == 2
        page = (tmp_path / "out" / "index.html").read_text("utf-8")
        assert "whole KV groups, the 1 head with the highest sinks" in page
        assert 'data-detector="sinks"' in page

    def test_from_a_file_without_controls(self, llama, place, tmp_path):
        (tmp_path / "heads.csv").write_text("layer,head\n0,1\n")
        options = ["--heads-file", tmp_path / "heads.csv", "--controls", 0]
        record, table = self.ablated(llama, place, tmp_path, *options)
        assert record["heads"] == "L0.H1"
        assert table["p_control"].isna().all()
        assert "no random controls" in record["skipped"][0]["why"]

    def test_questions_from_a_file(self, llama, place, tmp_path):
        lines = [
            {"question": "w5 w6", "choices": ["w7", "w8"], "answer": n % 2}
            for n in range(4)
        ]
        file = tmp_path / "q.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        options = ["--heads", "L0.H1", "--task", f"choice:{file}"]
        _, table = self.ablated(llama, place, tmp_path, *options)
        assert table["metric"].iloc[0] == "choice"
        assert not table["interpretable"].any()


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--heads", "L9.H0"], "head L9.H0 was asked for"),
            (["--heads", "L0.H4"], "heads H0 to H3"),
            (["--heads", ","], "--heads names nothing"),
            ([], "none was given"),
            (["--heads", "L0.H1", "--top", "sinks:1"], "several was given"),
            (["--heads", "L0.H1", "--controls", 50], "allow 3 different ones"),
            (["--heads", "L0.H1,L1.H1", "--controls", 5], "--controls 9 or more"),
            (["--heads", "L0.H1", "--mode", "remove"], "got 'remove'"),
            (["--heads", "L0.H1", "--task", "spelling"], "'spelling' was asked for"),
            (["--heads", "L0.H1", "--task", "passkey"], "has no sentence end"),
            (["--top", "sinking:5%"], "Did you mean 'sinks'"),
            (["--heads", "L0.H1", "--seed", -1], "seed"),
        ],
    )
    def test_it_says_so_and_leaves_no_folder(
        self, options, said, llama, place, tmp_path
    ):
        text = ["--text", place / "words.txt"]
        line = refused("ablate", llama, *options, *text, "--out", tmp_path / "out")
        assert says(line, said)
        assert not (tmp_path / "out").exists()

    def test_broken_lines_of_a_task_are_named(self, llama, tmp_path):
        file = tmp_path / "q.jsonl"
        file.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
        options = ["--heads", "L0.H1", "--task", f"problems:{file}"]
        ended = run("ablate", llama, *options, "--out", tmp_path / "out")
        assert ended.code == 2
        assert says(ended.err, "line 2", "'answer' is None")

    def test_a_model_that_predicts_no_next_token(self, tmp_path, place):
        bert = save(tmp_path, "bert")
        text = ["--text", place / "words.txt"]
        line = refused(
            "ablate", bert, "--heads", "L0.H1", *text, "--out", tmp_path / "o"
        )
        assert says(line, "decoder-only language model")

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            (["--seed", "1"], "seed: 0; of this run: 1"),
            (["--mode", "mean"], "modes: zero; of this run: mean"),
            (["--task", "key_value"], "tasks: "),
            (["--groups"], "groups: False; of this run: True"),
        ],
    )
    def test_another_run_s_folder(self, changed, said, command, whole):
        before = files_of(whole)
        line = refused(*command[:-1], *changed, "--out", whole)
        assert says(line, "holds another ablation", said, "--out")
        assert files_of(whole) == before

    def test_an_atlas_is_no_ablation_and_back(self, command, llama, place, tmp_path):
        text = ["--text", place / "words.txt", "--max-tokens", 20]
        quick = ["atlas", llama, *text, "--detectors", "sinks", "--out"]
        made(*quick, tmp_path / "atlas")
        line = refused(*command, tmp_path / "atlas")
        assert says(line, "holds no ablation but another command's results")
        copy(place / "whole", tmp_path / "whole")
        assert says(refused(*quick, tmp_path / "whole"), "holds no atlas")


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_cannot_copy_without_its_induction_heads(tmp_path):
    task = "{task = 'repeated', block = 32, copies = 2, seeds = [0, 1, 2]}"
    options = ["--top", "induction:5%", "--max-tokens", 256, "--task", task]
    out = tmp_path / "out"
    made("ablate", "smollm2-135m", *options, "--controls", 0, "--out", out)
    row = pd.read_csv(out / "ablation.csv").iloc[0]
    assert row["interpretable"]
    assert row["base"] > 0.5
    assert row["score"] < 0.1
    assert row["high"] < -0.4
