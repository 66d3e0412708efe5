import builtins

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.capture import Capture
from interp.errors import InputError, NotCapturedError
from interp.exporting import (
    for_bertviz,
    for_circuitsvis,
    for_kvpress,
    to_frames,
    write_duo_attention,
    write_frames,
)
from interp.heads import HeadGrid, HeadSet
from interp.kernels.definitions import Entropy, Pattern, Received
from interp.probes.gate_patterns import full_heads, load_pattern

TEXT = "w5 w9 w33 w7 w61"
PATTERNS = Capture((Pattern(), Entropy(), Received()), None, residual=True)


def traced(family="llama", inputs=TEXT, capture=PATTERNS):
    model = interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())
    return interp.trace(model, inputs, capture=capture)


def test_a_table_has_a_row_for_every_cell():
    trace = traced()
    frames = to_frames(trace)

    assert set(frames) >= {"self_query", "self_key", "self_query_key", "residual_token"}
    rows = frames["self_query"]
    assert list(rows.columns[:3]) == ["layer", "head", "query"]
    assert "query_token" in rows
    one = rows[(rows["layer"] == 1) & (rows["head"] == 2) & (rows["query"] == 3)]
    assert one["entropy"].item() == trace["self"]["entropy"].sel(
        layer=1, head=2, query=3
    )
    assert len(rows) == 2 * 4 * 5


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_are_read_back_as_they_were(tmp_path, kind):
    trace = traced()
    files = write_frames(trace, tmp_path / "tables", kind)
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    for file in files:
        own = to_frames(trace)[file.stem]
        pd.testing.assert_frame_equal(read(file), own, check_dtype=False)


def test_a_format_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="csv or parquet"):
        write_frames(traced(), tmp_path, "xlsx")

    def without(name, *rest, imported=builtins.__import__, **options):
        if name.startswith("pyarrow") or name.startswith("fastparquet"):
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="Install pyarrow"):
        write_frames(traced(), tmp_path, "parquet")


def test_circuitsvis_gets_the_heads_of_a_layer():
    trace = traced()
    given = for_circuitsvis(trace, layer=1)

    assert given["attention"].shape == (4, 5, 5)
    assert len(given["tokens"]) == 5
    np.testing.assert_allclose(given["attention"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(given["attention"], np.tril(given["attention"]))
    assert given["attention_head_names"][3] == "L1.H3"
    assert given["mask_upper_tri"] is True


def test_bertviz_gets_what_transformers_would_have_given_it():
    module = tiny("llama")[0]
    model = interp.load(module, tokenizer=tiny_tokenizer())
    given = for_bertviz(interp.trace(model, TEXT, capture=PATTERNS))
    ids = torch.tensor([tiny_tokenizer()(TEXT)["input_ids"]])
    module.set_attn_implementation("eager")
    with torch.no_grad():
        maps = module(ids, output_attentions=True).attentions

    assert [each.shape for each in given["attention"]] == [each.shape for each in maps]
    for ours, theirs in zip(given["attention"], maps, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(given["tokens"]) == 5


def test_bertviz_gets_both_sides_of_an_encoder_decoder():
    _, inputs = tiny("t5")
    one = {name: value[:1] for name, value in inputs.items()}
    given = for_bertviz(traced("t5", one), layers=[1])

    [cross] = given["cross_attention"]
    assert cross.shape[2] == len(given["decoder_tokens"])
    assert cross.shape[3] == len(given["encoder_tokens"])


def test_kvpress_gets_the_groups_that_stream():
    grid = HeadGrid(n_layers=2, n_heads=4, n_kv_heads=2)
    mask = for_kvpress(HeadSet.parse("L0.H1,L1.H2,L1.H3", grid))

    assert mask.tolist() == [[False, True], [True, False]]


def test_duo_attention_gets_a_row_of_gates_a_layer(tmp_path):
    grid = HeadGrid(n_layers=2, n_heads=4, n_kv_heads=2)
    path = tmp_path / "full_attention_heads.tsv"
    write_duo_attention(HeadSet.parse("L0.H1,L1.H2,L1.H3", grid), path)

    assert path.read_text("utf-8") == "1\t0\n0\t1\n"
    kept = full_heads(load_pattern(path, grid), threshold=0.5)
    assert kept == HeadSet.parse("L0.H0,L0.H1,L1.H2,L1.H3", grid)


def test_what_a_view_needs_and_lacks_is_named():
    trace = traced()
    for call, error, cause in (
        (lambda: for_circuitsvis(trace, 7), InputError, "Layer 7"),
        (lambda: for_circuitsvis(trace, 0, "cross"), InputError, "for_bertviz"),
        (
            lambda: for_bertviz(traced(capture=Capture((Entropy(),), None))),
            NotCapturedError,
            "Pattern",
        ),
        (lambda: for_bertviz(traced(inputs=[TEXT, TEXT])), InputError, "one text"),
    ):
        with pytest.raises(error, match=cause):
            call()
