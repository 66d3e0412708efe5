"""`interp trace --new-tokens`: a text is shown as it grows, and traced."""

import json

import pytest
from command_line import refused, run, save, says
from tiny_models import tiny_tokenizer

import interp

PROMPT = "w5 w9 w33 w7 w61"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


def test_a_text_is_shown_while_it_grows_and_is_traced(llama, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    out = tmp_path / "t.zarr"
    options = ["--text", tmp_path / "prompt.txt", "--out", out, "--new-tokens", 7]
    ended = run("trace", llama, *options)

    assert ended.code == 0, ended.err
    assert ended.out.strip() == str(out)
    trace = interp.open_trace(out)
    ids = json.loads(trace.attrs["generated"])
    assert ended.err.strip() == tiny_tokenizer().decode(ids, skip_special_tokens=True)
    assert trace.attrs["prompt_tokens"] == 5
    assert trace["self"].sizes["query"] == 5 + len(ids)
    again = run("trace", llama, *options)
    assert (again.code, again.out) == (0, ended.out)


def test_a_prompt_that_is_to_be_cut_is_refused(llama, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    options = ["--text", tmp_path / "prompt.txt", "--out", tmp_path / "t.zarr"]
    said = refused("trace", llama, *options, "--new-tokens", 7, "--max-tokens", 3)
    assert says(said, "--max-tokens 3", "--new-tokens 7", "Leave one")
