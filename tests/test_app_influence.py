"""A corpus by influence: what is read, ranked and refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
from command_line import (
    files_of,
    made,
    refused,
    save,
    says,
    words,
    write_words,
)

import interp
from interp.app.corpus import read_corpus
from interp.heads import HeadSet
from interp.probes.influence import attention_influence

OUTPUTS = {"run.json", "losses.jsonl", "influence.csv", "kept.jsonl"}
HEADS = ["--heads", "L0.H1,L1.H2"]
LINES = [
    {"id": f"text {n}", "domain": "ab"[n % 2], "text": words(10 + 3 * n, seed=n)}
    for n in range(9)
]
LINES.append({**LINES[3], "id": "again"})


def write_lines(path: Path, lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("influence")
    write_lines(folder / "corpus.jsonl", LINES)
    return folder


@pytest.fixture(scope="module")
def command(llama, place):
    """The command without its folder."""
    options = ["--controls", 2, "--keep", "40%", "--window", 32]
    return ["influence", llama, place / "corpus.jsonl", *HEADS, *options, "--out"]


@pytest.fixture(scope="module")
def whole(command, place):
    """A ranked corpus; tests that change it take a copy."""
    out = place / "whole"
    assert made(*command, out) == str(out / "influence.csv")
    return out


@pytest.fixture(scope="module")
def table(whole):
    return pd.read_csv(whole / "influence.csv")


class TestOutputs:
    def test_the_folder_holds_these(self, whole):
        assert {path.name for path in whole.iterdir()} == OUTPUTS

    def test_the_numbers_are_those_of_the_function(self, table, llama):
        model = interp.load(llama, device="cpu")
        heads = HeadSet.parse(HEADS[1], model.anatomy)
        texts = {line["id"]: line["text"] for line in LINES}
        found = attention_influence(model, texts, heads, controls=2, window=32)
        rows = table.set_index("id").loc[list(texts)]
        for name in ("tokens", "nll", "nll_ref", "influence"):
            assert rows[name].tolist() == found[name].values.tolist()
        bounds = rows[["low", "high"]].values.tolist()
        assert bounds == found["influence_interval"].values.tolist()
        control = found["control"]
        assert rows["control_low"].tolist() == control.min("draw").values.tolist()
        assert rows["control_high"].tolist() == control.max("draw").values.tolist()

    def test_texts_are_ranked_within_their_domain(self, table):
        domains = {line["id"]: line["domain"] for line in LINES}
        assert table["domain"].tolist() == [domains[name] for name in table["id"]]
        assert table["domain"].tolist() == sorted(table["domain"])
        for _, own in table.groupby("domain"):
            assert own["influence"].is_monotonic_decreasing
            assert own["rank"].iloc[0] == 1
            assert own["percentile"].iloc[0] == 100
            below = [(own["influence"] <= value).mean() for value in own["influence"]]
            assert own["percentile"].tolist() == pytest.approx([100 * b for b in below])

    def test_a_share_of_each_domain_is_kept(self, table, whole):
        assert table.groupby("domain")["kept"].sum().tolist() == [2, 2]
        assert (table["rank"][table["kept"]] <= 2).all()
        lines = (whole / "kept.jsonl").read_text().splitlines()
        names = set(table["id"][table["kept"]])
        wanted = [line for line in LINES if line["id"] in names]
        assert [json.loads(line) for line in lines] == wanted

    def test_equal_texts_get_equal_rows(self, table):
        rows = table.set_index("id").loc[["text 3", "again"]]
        one, two = (row.to_dict() for _, row in rows.iterrows())
        assert one == two

    def test_the_record_tells_what_decided_the_results(self, whole, llama):
        record = json.loads((whole / "run.json").read_text())
        model = interp.load(llama, device="cpu")
        assert record["model_hash"] == model.content_hash
        assert list(record["inputs"]) == ["corpus.jsonl"]
        assert record["parameters"] == {
            "heads": "L0.H1,L1.H2",
            "controls": 2,
            "keep": 0.4,
            "window": 32,
            "max_tokens": None,
            "seed": 0,
            "dtype": "float32",
        }
        assert record["finished"] is True
        assert record["command"].startswith("interp influence ")
        assert record["heads"] == "L0.H1,L1.H2"
        assert record["chosen"] == "named in the command"
        assert len(record["drawn"]) == 2
        assert record["skipped"] == []
        assert all(seconds >= 0 for seconds in record["timings"].values())


class TestChoices:
    def ranked(self, llama, corpus, tmp_path, *options):
        made("influence", llama, corpus, *options, "--out", tmp_path / "out")
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        return record, pd.read_csv(tmp_path / "out" / "influence.csv")

    def test_heads_by_a_detector_without_controls(self, llama, place, tmp_path):
        options = ["--top", "induction:1", "--controls", 0]
        record, table = self.ranked(llama, place / "corpus.jsonl", tmp_path, *options)
        assert len(record["heads"].split(",")) == 1
        assert record["chosen"] == "the 1 head with the highest induction"
        assert "no random controls" in record["skipped"][0]["why"]
        assert table["control_median"].isna().all()

    def test_long_texts_are_cut(self, llama, place, tmp_path):
        options = [*HEADS, "--max-tokens", 12]
        _, table = self.ranked(llama, place / "corpus.jsonl", tmp_path, *options)
        assert table["tokens"].max() == 11

    def test_a_domain_of_one_text_keeps_it(self, llama, tmp_path):
        lines = [*LINES[:4], {"text": words(9), "domain": "alone"}]
        corpus = write_lines(tmp_path / "c.jsonl", lines)
        _, table = self.ranked(llama, corpus, tmp_path, *HEADS, "--keep", "1%")
        alone = table[table["domain"] == "alone"].iloc[0]
        assert (alone["rank"], alone["percentile"], alone["kept"]) == (1, 100, True)

    def test_without_out_the_folder_is_called_after_the_corpus(
        self, llama, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        write_lines(tmp_path / "web.jsonl", LINES[:2])
        assert made("influence", llama, "web.jsonl", *HEADS) == (
            "influence-web/influence.csv"
        )


class TestCorpora:
    def read(self, tmp_path, content, *fields, name="c.jsonl"):
        path = tmp_path / name
        path.write_text(content, "utf-8")
        return read_corpus(path, *fields)

    def test_lines_without_a_name_are_called_after_their_number(self, tmp_path):
        content = '{"text": "a b"}\n\n{"text": " c ", "id": 7}\n'
        first, second = self.read(tmp_path, content)
        assert (first.name, first.domain, first.text) == ("line 1", "", "a b")
        assert (second.name, second.text) == ("7", " c ")

    def test_fields_are_named(self, tmp_path):
        content = '{"body": "a b", "source": "web", "text": "x", "domain": "y"}\n'
        [entry] = self.read(tmp_path, content, "body", "source")
        assert (entry.text, entry.domain) == ("a b", "web")
        assert entry.record["domain"] == "y"

    def test_a_separator_of_unicode_ends_no_line(self, tmp_path):
        content = '{"text": "a\N{LINE SEPARATOR}b\x85c"}\r\n{"text": "d"}'
        first, second = self.read(tmp_path, content)
        assert first.text == "a\N{LINE SEPARATOR}b\x85c"
        assert second.name == "line 2"

    def test_empty_lines_part_the_texts_of_a_plain_file(self, tmp_path):
        content = "\none\ntwo\n  \n\n three\n"
        entries = self.read(tmp_path, content, name="c.txt")
        found = [(each.name, each.text) for each in entries]
        assert found == [("line 2", "one\ntwo"), ("line 6", " three")]
        assert entries[0].record["text"] == "one\ntwo"

    def test_folders_are_domains_of_the_texts_in_them(self, tmp_path):
        for name in ("b.txt", "math/a.txt", "math/more/c.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_words(tmp_path / name, 5)
        (tmp_path / "notes.md").write_text("no text")
        found = [(each.name, each.domain) for each in read_corpus(tmp_path)]
        assert found == [
            ("b.txt", ""),
            ("math/a.txt", "math"),
            ("math/more/c.txt", "math/more"),
        ]


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "options", "said"),
        [
            ("", [], "is empty"),
            ("\n\n", [], "is empty"),
            ('{"text": "a b"}\n{"text": "a', [], "line 2: no JSON"),
            ('{"text": "a b"}\n["a b"]\n', [], "line 2: no object"),
            ('{"body": "a b"}\n', [], "line 1: 'text' is None, not a text"),
            ('{"text": " "}\n', [], "line 1: 'text' is ' ', not a text"),
            ('{"text": "a"}\n', ["--text-field", "body"], "'body' is None"),
            ('{"text": "a"}\n', ["--domain-field", "kind"], "'kind' is None, no name"),
            ('{"text": "a", "domain": [1]}\n', [], "'domain' is [1], no name"),
            ('{"text": "\\ud800"}\n', [], "line 1: half of a surrogate pair"),
            ('{"text": "w5"}\n', [], "The text line 1 has 1 tokens"),
            ('{"text": "a", "id": 1}\n{"text": "b", "id": "1"}\n', [], "called '1'"),
            ('{"text": "w5 w6"}\n', ["--keep", "20"], "--keep takes a share"),
            ('{"text": "w5 w6"}\n', ["--keep", "0%"], "--keep takes a share"),
            ('{"text": "w5 w6"}\n', ["--window", 3], "window"),
            ('{"text": "w5 w6"}\n', ["--top", "sinks:1"], "several was given"),
        ],
    )
    def test_a_corpus_or_an_option(self, content, options, said, llama, tmp_path):
        corpus = tmp_path / "c.jsonl"
        corpus.write_text(content)
        command = ["influence", llama, corpus, *HEADS, *options]
        line = refused(*command, "--out", tmp_path / "out")
        assert says(line, said)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ([], "none was given"),
            (["--heads", ","], "--heads names nothing"),
            (["--heads", "L9.H0"], "head L9.H0 was asked for"),
            (["--heads", "L0.H0,L0.H1,L0.H2"], "3 heads of layer 0"),
            (["--top", "sinking:5%"], "Did you mean 'sinks'"),
        ],
    )
    def test_heads(self, options, said, llama, place, tmp_path):
        command = ["influence", llama, place / "corpus.jsonl", *options]
        line = refused(*command, "--out", tmp_path / "out")
        assert says(line, said)
        assert not (tmp_path / "out").exists()

    def test_a_corpus_that_is_not_there(self, llama, tmp_path):
        for name in ("c.jsonl", "c.txt"):
            line = refused("influence", llama, tmp_path / name, *HEADS)
            assert says(line, "does not exist")
        (tmp_path / "folder").mkdir()
        line = refused("influence", llama, tmp_path / "folder", *HEADS)
        assert says(line, "holds no .txt file")

    def test_a_model_that_predicts_no_next_token(self, place, tmp_path):
        bert = save(tmp_path, "bert")
        command = ["influence", bert, place / "corpus.jsonl", *HEADS]
        line = refused(*command, "--out", tmp_path / "out")
        assert says(line, "decoder-only language model")

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            (["--seed", 1], "seed: 0; of this run: 1"),
            (["--controls", 3], "controls: 2; of this run: 3"),
            (["--heads", "L0.H2"], "heads: L0.H1,L1.H2; of this run: L0.H2"),
        ],
    )
    def test_another_run_s_folder(self, changed, said, command, whole):
        before = files_of(whole)
        line = refused(*command[:-1], *changed, "--out", whole)
        assert says(line, "holds another influence of texts", said, "--out")
        assert files_of(whole) == before
