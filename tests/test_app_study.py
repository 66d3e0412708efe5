"""A study from one file: what it makes, what it refuses, and how it goes on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import copy, files_of, made, only_line, refused, run, save, says
from test_viz_report import Page

from interp.app import study as app_study
from interp.app.study import read_study
from interp.app.study_file import StudyFile

EXAMPLE = Path(__file__).parent.parent / "docs" / "study.toml"

SMALL = """
title = "Small <study>"
models = ["llama"]
tasks = [{ task = "repeated", block = 8, copies = 2 }]
controls = 0

[heads.first]
heads = "L0.H1"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def example(root):
    """The example of the repository, on a tiny model, and its results."""
    text = EXAMPLE.read_text("utf-8").replace("smollm2-135m", "llama")
    (root / "example.toml").write_text(text)
    assert made("report", root / "example.toml", "--out", root / "results") == str(
        root / "results" / "index.html"
    )
    return root / "results"


@pytest.fixture
def written(root):
    """Writes a study beside the models."""

    def write(text, name="study.toml"):
        (root / name).write_text(text)
        return root / name

    return write


class TestExample:
    def test_the_repository_s_example_names_the_default_model(self):
        study = read_study(StudyFile.read(EXAMPLE))
        assert study.models == ("smollm2-135m",)
        assert set(study.heads) == {"induction", "sinks"}

    def test_each_model_and_set_of_heads_has_a_folder(self, example):
        assert {path.name for path in example.iterdir()} == {
            "index.html",
            "study.csv",
            "run.json",
            "llama",
        }
        for heads in ("induction", "sinks"):
            record = json.loads((example / "llama" / heads / "run.json").read_text())
            assert record["finished"] is True
            assert record["parameters"]["modes"] == ["zero", "mean"]

    def test_the_table_holds_all_rows_and_a_family_over_the_study(self, example):
        table = pd.read_csv(example / "study.csv")
        parts = [
            pd.read_csv(example / "llama" / heads / "ablation.csv")
            for heads in ("induction", "sinks")
        ]
        joined = pd.concat(parts, ignore_index=True)
        own = table.drop(columns=["model", "heads", "p_holm_study"])
        pd.testing.assert_frame_equal(own, joined)
        asked = table[table["asked"] == "before"]
        assert len(asked) == 8
        assert (asked["p_holm_study"] >= asked["p_holm"] - 1e-12).all()
        assert table[table["asked"] == "after"]["p_holm_study"].isna().all()
        np.testing.assert_array_equal(table["model"].unique(), ["llama"])

    def test_the_page_links_every_ablation(self, example):
        page = Page((example / "index.html").read_text("utf-8"))
        links = [link for link in page.links if not link.startswith("#")]
        assert links == ["llama/induction/index.html", "llama/sinks/index.html"]
        assert all((example / link).is_file() for link in links)
        assert "llama, induction, mean" in page.words

    def test_again_it_makes_the_same(self, example, root):
        before = files_of(example)
        made("report", root / "example.toml", "--out", example)
        after = files_of(example)
        assert set(after) == set(before)
        changed = {name for name in after if after[name] != before[name]}
        assert changed <= {"run.json", "index.html"}

    def test_what_is_missing_is_made_again(self, example, root, tmp_path):
        lacking = copy(example, tmp_path / "lacking")
        (lacking / "llama" / "sinks" / "ablation.csv").unlink()
        (lacking / "study.csv").unlink()
        made("report", root / "example.toml", "--out", lacking)
        table = (example / "study.csv").read_bytes()
        assert (lacking / "study.csv").read_bytes() == table


class TestFailures:
    def test_a_model_that_fails_is_told_and_the_others_are_finished(
        self, written, root, tmp_path
    ):
        (root / "broken").mkdir(exist_ok=True)
        text = SMALL.replace('"llama"', '"broken", "llama"')
        out = tmp_path / "out"
        ended = run("report", written(text), "--out", out)
        assert (ended.code, ended.out) == (2, f"{out / 'index.html'}\n")
        line = only_line(ended.err)
        assert says(line, "1 of 2 ablations", "broken/first", "run the same command")
        assert (out / "llama" / "first" / "ablation.csv").is_file()
        assert "broken, first failed:" in Page((out / "index.html").read_text()).words
        record = json.loads((out / "run.json").read_text())
        assert record["finished"] is False
        assert [bool(part["failed"]) for part in record["parts"]] == [True, False]

    def test_a_set_of_heads_that_the_model_has_not_fails_alone(self, written, tmp_path):
        text = SMALL + '[heads.last]\nheads = ["L7.H0"]\n'
        ended = run("report", written(text), "--out", tmp_path / "out")
        assert ended.code == 2
        assert says(ended.err, "llama/last: head L7.H0 was asked for")
        table = pd.read_csv(tmp_path / "out" / "study.csv")
        assert set(table["heads"]) == {"first"}

    def test_where_all_fail_a_page_says_so(self, written, root, tmp_path):
        (root / "broken").mkdir(exist_ok=True)
        text = SMALL.replace('"llama"', '"broken"')
        ended = run("report", written(text), "--out", tmp_path / "out")
        assert ended.code == 2
        assert "None was finished" in (tmp_path / "out" / "index.html").read_text()

    def test_ctrl_c_keeps_what_was_finished(self, written, tmp_path, monkeypatch):
        text = SMALL + '[heads.last]\nheads = ["L1.H0"]\n'
        study, out = written(text), tmp_path / "out"
        done = []

        def interrupted(request, progress):
            done.append(request)
            if len(done) > 1:
                raise KeyboardInterrupt
            return own(request, progress)

        own = app_study.ablate.make
        with monkeypatch.context() as patch:
            patch.setattr(app_study.ablate, "make", interrupted)
            ended = run("report", study, "--out", out)
        assert (ended.code, ended.out) == (130, "")
        assert (out / "llama" / "first" / "ablation.csv").is_file()
        made("report", study, "--out", out)
        assert len(pd.read_csv(out / "study.csv")["heads"].unique()) == 2


class TestFile:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (("controls", "n_controls"), "line 5: n_controls is no key. There are"),
            (('heads = "L0', 'head = "L0'), "line 8: head is no key. There are heads"),
            (("controls = 0", 'controls = "no"'), "line 5: controls is 'no'. It takes"),
            (("controls = 0", "controls = true"), "takes a whole number"),
            (("controls = 0", "controls = -1"), "line 5: controls is -1"),
            (("controls = 0", "max_tokens = 0"), "max_tokens is 0"),
            (('["llama"]', '"llama"'), "line 3: models is 'llama'. It takes a list"),
            (('["llama"]', "[1]"), "takes a list of texts"),
            (('["llama"]', "[]"), "names no models"),
            (("title =", "title"), "cannot be read as TOML"),
            (("[heads.first]", "[heads]"), "heads is no table"),
            (('heads = "L0.H1"', ""), "none was given"),
            (('heads = "L0.H1"', "heads = []"), "list is empty"),
            (('heads = "L0.H1"', 'file = "none.txt"'), "does not exist"),
            (('"L0.H1"', '"L0.H1"\ntop = "sinks:1"'), "several was given"),
            (("block = 8", "blocks = 8"), "'blocks', which it has not"),
            (('"repeated"', '"repeat"'), "Did you mean repeated"),
            (("controls = 0", 'modes = ["cut"]'), "got 'cut'"),
            (("controls = 0", 'texts = ["none.txt"]'), "none.txt"),
        ],
    )
    def test_what_it_cannot_say(self, change, said, written, tmp_path):
        study = written(SMALL.replace(*change))
        line = refused("report", study, "--out", tmp_path / "out")
        assert says(line, said)
        assert not (tmp_path / "out").exists()

    def test_a_file_that_is_not_there(self, tmp_path):
        line = refused("report", tmp_path / "none.toml")
        assert says(line, "none.toml cannot be read", "TOML file")

    def test_paths_begin_at_the_study(self, written, root, tmp_path, monkeypatch):
        (root / "mine.txt").write_text(" ".join(f"w{n}" for n in range(3, 90)))
        (root / "heads.txt").write_text("L1.H3\n")
        text = SMALL.replace("controls = 0", 'controls = 0\ntexts = ["mine.txt"]')
        text = text.replace('heads = "L0.H1"', 'file = "heads.txt"\ngroups = true')
        text = text.replace('task = "repeated", block = 8, copies = 2', 'task = "nll"')
        study = written(text)
        monkeypatch.chdir(tmp_path)
        page = made("report", study)
        assert page == str(Path("study-study") / "index.html")
        record = json.loads(Path("study-study/llama/first/run.json").read_text())
        assert record["heads"] == "L1.H2,L1.H3"
        assert "mine.txt" in record["inputs"]

    def test_two_models_of_one_name_have_two_folders(self, written, root, tmp_path):
        copy(root / "llama", root / "other" / "llama")
        text = SMALL.replace('"llama"', '"llama", "other/llama"')
        made("report", written(text), "--out", tmp_path / "out")
        assert (tmp_path / "out" / "llama" / "first").is_dir()
        assert (tmp_path / "out" / "llama~2" / "first").is_dir()

    def test_a_folder_that_holds_something_else_is_kept(self, written, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        line = refused("report", written(SMALL), "--out", tmp_path)
        assert says(line, "holds something else", "--out")
        assert list(files_of(tmp_path)) == ["mine.txt"]
