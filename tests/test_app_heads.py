import json

import numpy as np
import pytest
import xarray as xr
from command_line import words
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.app.heads import Named, Strongest, hidden_in, read_heads, said_of
from interp.errors import InputError
from interp.probes.atlas import atlas
from interp.probes.retrieval import RetrievalHeads
from interp.tasks import Passkey


def silent(step, done, total):
    """No progress."""


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())


def chosen(choice, model, texts=None, max_tokens=None):
    return choice.choose(model, texts or {"a": words(40)}, max_tokens, 0, silent)


class TestNames:
    def test_names_are_heads_of_the_model(self, model):
        heads, values = chosen(read_heads(["L0.H1", "L1.H3"], None, None), model)
        assert str(heads) == "L0.H1,L1.H3"
        assert values is None

    def test_a_head_that_the_model_has_not(self, model):
        with pytest.raises(InputError, match=r"L7\.H0 was asked for.*L0 to L1"):
            chosen(Named(("L7.H0",)), model)

    @pytest.mark.parametrize(
        ("ways", "said"),
        [
            ((None, None, None), "none was given"),
            ((["L0.H1"], None, "induction:1"), "several was given"),
            (([], None, None), "list is empty"),
            ((["first"], None, None), "written L12.H7"),
        ],
    )
    def test_what_names_no_heads(self, ways, said):
        with pytest.raises(InputError, match=said):
            read_heads(*ways)


class TestFiles:
    @pytest.mark.parametrize(
        "text",
        [
            "L0.H1\n# a comment\n\nL1.H3\n",
            "layer,head\n0,1\n1,3\n",
            "name,head,layer,induction\na,1,0,0.5\n\nb,3,1,0.25",
        ],
    )
    def test_names_or_a_table(self, text, tmp_path):
        file = tmp_path / "heads.csv"
        file.write_text(text)
        choice = read_heads(None, file, None)
        assert choice.spec == "L0.H1,L1.H3"
        assert str(choice) == "named in heads.csv"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("L0.H1\nhead 3\n", "line 2 is 'head 3'"),
            ("layer,head\n0,1\n1,x\n", "line 3 is '1,x'"),
            ("layer,head\n0\n", "line 2 is '0'"),
            ("layer,head\n", "names none"),
            ("# nothing\n", "names none"),
            (" \n", "empty"),
        ],
    )
    def test_a_broken_line_is_named(self, text, said, tmp_path):
        file = tmp_path / "heads.txt"
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            read_heads(None, file, None)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            read_heads(None, tmp_path / "heads.txt", None)


class TestStrongest:
    @pytest.mark.parametrize(
        ("text", "k", "share"), [("sinks:3", 3, None), ("sinks: 12.5 %", None, 0.125)]
    )
    def test_a_number_or_a_share(self, text, k, share, model):
        choice = Strongest.parse(text)
        assert (choice.k, choice.share) == (k, share)
        assert Strongest.parse(choice.spec) == choice
        heads, values = chosen(choice, model)
        assert heads == interp.HeadSet.top(values, k, share)

    @pytest.mark.parametrize("name", ["sinks", "induction"])
    def test_the_values_are_those_of_an_atlas(self, name, model):
        texts = {"a": words(40), "b": words(30, 1)}
        _, values = chosen(Strongest.parse(f"{name}:1"), model, texts, 32)
        theirs = atlas(model, texts, detectors=name, max_tokens=32)["heads"][name]
        np.testing.assert_array_equal(values.values, theirs.values)

    def test_of_a_longer_text_the_beginning_is_read(self, model):
        choice = Strongest.parse("sinks:1")
        _, values = chosen(choice, model, {"a": words(200)})
        _, cut = chosen(choice, model, {"a": words(200)}, 64)
        np.testing.assert_array_equal(values.values, cut.values)

    def test_an_experiment_is_run_and_says_where_it_looked(self, model, monkeypatch):
        values = xr.DataArray([[0.1, 0.9, 0.0, 0.2]] * 2, dims=("layer", "head"))
        passkeys = {"here": Passkey(haystack="Here."), "there": Passkey(haystack="A.")}
        knobs = json.dumps([passkeys["here"].attrs])
        found = xr.Dataset({"retrieval": values.assign_attrs(tasks=knobs)})
        monkeypatch.setattr(RetrievalHeads, "run", lambda *_, **__: found)

        heads, own = chosen(Strongest.parse("retrieval:25%"), model)
        assert str(heads) == "L0.H1,L1.H1"
        hidden = hidden_in(own, passkeys)
        assert hidden == {"haystacks": ["Here."], "read_again_by": ["here"]}
        assert said_of(hidden) == ", in a text that here reads too"
        hidden = hidden_in(own, {"there": passkeys["there"]})
        assert said_of(hidden) == ", in other haystacks than the tasks read"
        assert said_of(hidden_in(None, passkeys)) == ""

    def test_an_experiment_that_tells_no_head_from_another(self, model, monkeypatch):
        same = xr.Dataset({"retrieval": (("layer", "head"), np.zeros((2, 4)))})
        monkeypatch.setattr(RetrievalHeads, "run", lambda *_, **__: same)
        with pytest.raises(
            InputError, match=r"retrieval, which tells none.*same value"
        ):
            chosen(Strongest.parse("retrieval:1"), model)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("sinks", "no share and no number"),
            ("sinks:x%", "sinks:5% or sinks:14"),
            ("sinks:0%", "no share"),
            ("sinks:nan%", "no share"),
            ("sink:5%", "Did you mean 'sinks'"),
            ("massive_activations:5%", "not about heads"),
            ("expected_attention:5%", "not about heads"),
        ],
    )
    def test_what_chooses_no_heads(self, text, said):
        with pytest.raises(InputError, match=said):
            Strongest.parse(text)

    @pytest.mark.parametrize("text", ["sinks:0", "sinks:9"])
    def test_a_number_that_the_model_has_not(self, text, model):
        with pytest.raises(InputError, match="Choose k between 1 and 8"):
            chosen(Strongest.parse(text), model)

    @pytest.mark.parametrize(
        ("name", "n", "said"),
        [("learned_sinks", 40, "same value"), ("local", 9, "no value on a")],
    )
    def test_a_detector_that_tells_no_head_from_another(self, name, n, said, model):
        with pytest.raises(InputError, match=f"{name}, which tells none.*{said}"):
            chosen(Strongest.parse(f"{name}:1"), model, {"a": words(n)})
