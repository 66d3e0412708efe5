"""Windows of a map at every zoom, against the dense map in float64."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from attention_cases import MASKS, make
from tiny_models import N_HEADS, N_TOKENS, tiny, tiny_tokenizer
from tolerance import assert_as_precise

import interp
from interp import map_windows as module
from interp.calls import KeptCall, keep
from interp.capture import Capture
from interp.errors import InputError, NotCapturedError
from interp.interventions.ablation import AblateHeads
from interp.kernels import statistics
from interp.kernels.definitions import BlockMap, Entropy, Lse
from interp.map_windows import of_call

N = 37
CELLS = (37, 20, 10, 5, 2, 1)
UNIT = 1 / np.log(2)
ARRAYS = ("block_mean", "block_max")


@pytest.fixture(autouse=True)
def _small_base(monkeypatch):
    """Blocks so small that short texts have a pyramid, of several stripes."""
    monkeypatch.setattr(module, "FINEST", 4)
    monkeypatch.setattr(module, "STRIPE", 8 * N)


def seen(call):
    """A call with its log-sum-exp, as a forward leaves it."""
    lse = statistics.compute(call, [Lse()])["lse"].nan_to_num(-torch.inf)
    tokens = tuple(f"w{i}" for i in range(call.key.shape[2]))
    return KeptCall(call, lse, tokens, tokens, {"layer": 0})


def case(mask):
    options = {"softcap": 3.0, "sinks": True} if mask in ("window", "dense") else {}
    return make(N, mask=mask, bias=mask == "chunk", **options)


@cache
def truth(mask, size):
    """Blocks of every head, `[head, row, column]`, in float64 and in float32."""
    found = case(mask)
    lse = seen(found.call).lse
    exact, *rounded = (
        blocks(found.dense(torch.float64), size),
        blocks(found.dense(torch.float32, lse=lse), size),
        blocks(found.dense(torch.float32, lse=lse, unit=UNIT, rounded=1), size),
    )
    return exact, rounded


def blocks(maps, size):
    """Mean over the visible pairs and maximum, of a dense map."""
    [dense] = maps

    def cut(values):
        n_query, n_key = values.shape[1:]
        padded = torch.nn.functional.pad(values, (0, -n_key % size, 0, -n_query % size))
        return padded.unflatten(2, (-1, size)).unflatten(1, (-1, size))

    pairs = cut(dense.visible.expand_as(dense.p).long()).sum((2, 4))
    return {
        "block_mean": cut(dense.p).sum((2, 4)) / pairs,
        "block_max": cut(dense.p).amax((2, 4)).masked_fill(pairs == 0, torch.nan),
    }


def tensor(values):
    return torch.from_numpy(values.values)


@pytest.mark.parametrize("mask", MASKS)
def test_every_zoom_shows_the_blocks_of_the_dense_map(mask):
    kept = seen(case(mask).call)
    for head in range(2):
        lm = of_call(kept, head)
        for cells in CELLS:
            window = lm.window(cells=cells)
            size = window.attrs["size"]
            exact, rounded = truth(mask, size)
            assert max(window.sizes.values()) <= cells
            assert size // 2 * cells < N, "cells no larger than they need to be"
            for name in ARRAYS:
                twins = [each[name][head] for each in rounded]
                assert_as_precise(tensor(window[name]), exact[name][head], *twins)


@pytest.mark.parametrize("mask", MASKS)
def test_a_window_is_a_part_of_the_whole(mask):
    lm = of_call(seen(case(mask).call), 1)
    for cells in CELLS[:-1]:
        for box in ((5, 29, 3, 18), (0, 37, 30, 37), (36, 37, 0, 1)):
            window = lm.window(*box, cells=cells)
            size = window.attrs["size"]
            exact, rounded = truth(mask, size)
            q0, k0 = int(window["query"][0]), int(window["key"][0])
            assert q0 <= box[0] < q0 + size
            assert k0 <= box[2] < k0 + size
            assert int(window["query"][-1]) + size >= box[1]
            assert int(window["key"][-1]) + size >= box[3]
            at = tuple(
                slice(first // size, first // size + window.sizes[dim])
                for first, dim in ((q0, "query_block"), (k0, "key_block"))
            )
            for name in ARRAYS:
                ours, own = tensor(window[name]), exact[name][1][at]
                twins = [each[name][1][at] for each in rounded]
                error = (rounded[0][name] - exact[name]).abs().nan_to_num().max()
                assert_as_precise(ours, own, *twins, elsewhere=float(error))


@pytest.mark.parametrize("mask", MASKS)
def test_parents_are_means_by_visible_pairs_and_maxima_of_maxima(mask):
    found = case(mask)
    lm = of_call(seen(found.call), 0)
    levels = {lm.window(cells=c).attrs["size"]: lm.window(cells=c) for c in CELLS}
    assert sorted(levels) == [1, 2, 4, 8, 32, 64]
    for size, window in levels.items():
        total = float((window["block_mean"] * window["pairs"]).sum())
        assert total == pytest.approx(float(found.dense(torch.float64)[0].p[0].sum()))
        assert int(window["pairs"].sum()) == int(found.visible[0, 0].sum())
        largest = float(levels[1]["block_max"].max())
        assert float(window["block_max"].max()) == pytest.approx(largest)
        if 2 * size in levels:
            parent = levels[2 * size]
            pairs = in_fours(window["pairs"]).sum((1, 3))
            mass = in_fours(window["block_mean"].fillna(0) * window["pairs"])
            with np.errstate(invalid="ignore"):
                mean = mass.sum((1, 3)) / pairs
            largest = in_fours(window["block_max"].fillna(0)).max((1, 3))
            largest = np.where(pairs > 0, largest, np.nan)
            np.testing.assert_array_equal(parent["pairs"], pairs)
            for name, wanted in (("block_max", largest), ("block_mean", mean)):
                wanted = torch.from_numpy(wanted.astype(np.float32))
                torch.testing.assert_close(tensor(parent[name]), wanted, equal_nan=True)


def in_fours(values):
    n_rows, n_columns = values.shape
    padded = np.pad(values.values, ((0, n_rows % 2), (0, n_columns % 2)))
    return padded.reshape(-(-n_rows // 2), 2, -(-n_columns // 2), 2)


FAMILIES = {
    "llama": "self",
    "gemma2": "self",
    "gpt_oss": "self",
    "llama4": "self",
    "t5": "cross",
    "whisper": "cross",
    "bert": "encoder",
    "modernbert": "encoder",
    "gptj": "self",
    "deepseek_v3": "self",
}
FIELDS = {
    "self": ("decoder_attentions", "attentions"),
    "cross": ("cross_attentions",),
    "encoder": ("encoder_attentions", "attentions"),
}


def eager(name, inputs, dtype, site):
    """The model's own maps of a site, `[layer][head, query, key]`."""
    model = tiny(name)[0].to(dtype)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    given = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    with torch.no_grad():
        output = model(**given, output_attentions=True, use_cache=False)
    return [m[0] for m in next(output[f] for f in FIELDS[site] if output.get(f))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_single_cells_are_its_own_eager_weights(name, untouched):
    loaded, inputs = tiny(name)
    inputs = {key: value[:1] for key, value in inputs.items()}
    site = FAMILIES[name]
    exact, rounded = (
        eager(name, inputs, t, site) for t in (torch.float64, torch.float32)
    )
    with untouched(loaded):
        for layer in range(2):
            call = keep(loaded, inputs, layer=layer, site=site)
            for head in range(N_HEADS):
                window = of_call(call, head).window()
                assert window.attrs["size"] == 1
                own, twin = exact[layer][head], rounded[layer][head]
                hidden = own == 0
                for array in ARRAYS:
                    assert_as_precise(
                        tensor(window[array]),
                        own.masked_fill(hidden, torch.nan),
                        twin,
                        name=f"{name}, layer {layer}, head {head}",
                        elsewhere=float((rounded[layer] - exact[layer]).abs().max()),
                    )


class TestOfATrace:
    TEXT = tuple(range(10, 10 + N_TOKENS))

    def traced(self, name, *statistics, vectors=True, inputs=None, out=None):
        module, own = tiny(name)
        given = inputs or {key: value[:1] for key, value in own.items()}
        capture = Capture(statistics, edges=None, residual=False, vectors=vectors)
        return module, given, interp.trace(module, given, capture=capture, out=out)

    @pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "whisper", "bert"])
    def test_a_store_gives_what_a_forward_gives(self, name, tmp_path):
        out = tmp_path / "t" if name == "gpt_oss" else None
        loaded, inputs, trace = self.traced(name, Lse(), out=out)
        for site in trace.children:
            for layer in range(2):
                call = keep(loaded, inputs, layer=layer, site=site)
                for head in (0, N_HEADS - 1):
                    ours = interp.long_map_of(trace, layer=layer, head=head, site=site)
                    np.testing.assert_array_equal(
                        ours.window()["block_max"],
                        of_call(call, head).window()["block_max"],
                    )

    def test_padding_and_a_missing_lse_change_nothing(self):
        ids, empty = torch.tensor([self.TEXT]), torch.zeros(1, 3).long()
        padded = {
            "input_ids": torch.cat([empty, ids], 1),
            "attention_mask": torch.cat([empty, torch.ones_like(ids)], 1),
        }
        loaded, _, trace = self.traced("llama", Entropy(), inputs=padded)
        whole = interp.long_map(loaded, {"input_ids": ids}, layer=1, head=2)
        for ours in (
            interp.long_map_of(trace, layer=1, head=2),
            interp.long_map(loaded, padded, layer=1, head=2),
        ):
            assert ours.shape == (N_TOKENS, N_TOKENS)
            np.testing.assert_allclose(
                ours.window()["block_max"], whole.window()["block_max"], atol=1e-6
            )

    def test_recorded_blocks_are_the_base_and_give_an_overview_alone(self):
        loaded, inputs, trace = self.traced("gemma2", BlockMap(4), vectors=False)
        blocks = trace["self"]["block_mean"].isel(layer=0, head=1).values
        ours = interp.long_map_of(trace, layer=0, head=1)
        exact = interp.long_map(loaded, inputs, layer=0, head=1)
        assert ours.finest == 4
        np.testing.assert_array_equal(ours.window()["block_mean"], blocks)
        np.testing.assert_allclose(
            ours.window(cells=2)["block_mean"],
            exact.window(cells=2)["block_mean"],
            rtol=1e-5,
        )
        assert ours.window(cells=2).attrs["size"] == 8
        both = self.traced("gemma2", BlockMap(4))[2]
        lm = interp.long_map_of(both, layer=0, head=1)
        assert lm.finest == 1
        np.testing.assert_array_equal(lm.window(cells=3)["block_mean"], blocks)

    def test_rules_that_no_trace_holds_are_named_with_the_remedy(self):
        trace = self.traced("llama4")[2]
        with pytest.raises(NotCapturedError, match=r"chunks.*interp\.long_map\("):
            interp.long_map_of(trace, layer=0, head=0)
        assert interp.long_map_of(trace, layer=1, head=0).finest == 1
        trace = self.traced("llama4", BlockMap(4), vectors=False)[2]
        with pytest.raises(NotCapturedError, match="pairs that exist"):
            interp.long_map_of(trace, layer=0, head=0)
        bare = self.traced("llama", Lse(), vectors=False)[2]
        with pytest.raises(NotCapturedError, match="vectors=True"):
            interp.long_map_of(bare, layer=0, head=0)

    def test_heads_layers_and_texts_that_are_not_there(self):
        _, own = tiny("llama")
        loaded, _, trace = self.traced("llama", inputs=own)
        with pytest.raises(InputError, match="one text; the trace has 2"):
            interp.long_map_of(trace, layer=0, head=0)
        with pytest.raises(InputError, match="one text; 2 were given"):
            interp.long_map(loaded, own, layer=0, head=0)
        one = {"input_ids": torch.tensor([self.TEXT])}
        for layer, head in ((2, 0), (0, 4)):
            with pytest.raises(InputError, match="was asked for; there are 0 to"):
                interp.long_map(loaded, one, layer=layer, head=head)
        with pytest.raises(InputError, match="site 'cross'"):
            interp.long_map(loaded, one, layer=0, head=0, site="cross")
        lm = interp.long_map(loaded, one, layer=0, head=0)
        for box in ((0, 13, 0, 12), (3, 3, 0, 12), (-1, 3, 0, 2)):
            with pytest.raises(InputError, match="12 queries and 12 keys"):
                lm.window(*box)
        with pytest.raises(InputError, match="at least one cell"):
            lm.window(cells=0)


def test_tokens_name_the_cells_and_the_map_what_it_is_of():
    loaded = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
    window = interp.long_map(loaded, "w3 w4 w5 w6 w7", layer=1, head=2).window(cells=3)
    assert window["query_token"].values.tolist() == ["w3", "w5", "w7"]
    assert window["key"].values.tolist() == [0, 2, 4]
    assert (window.attrs["layer"], window.attrs["head"]) == (1, 2)
    assert (window.attrs["n_keys"], window.attrs["size"]) == (5, 2)
    assert window["pairs"].values.tolist() == [[3, 0, 0], [4, 3, 0], [2, 2, 1]]


def test_a_map_under_an_intervention_is_the_changed_one_or_none():
    loaded = interp.load(tiny("llama")[0])
    inputs = {"input_ids": torch.tensor([TestOfATrace.TEXT])}
    plain = interp.long_map(loaded, inputs, layer=1, head=0).window()
    heads = interp.HeadSet.parse("L0.H0", loaded.anatomy)
    with AblateHeads(heads)(loaded):
        changed = interp.long_map(loaded, inputs, layer=1, head=0).window()
    assert not changed["block_max"].equals(plain["block_max"])
    with (
        AblateHeads(heads, mode="uniform")(loaded),
        pytest.raises(InputError, match="outside the intervention"),
    ):
        interp.long_map(loaded, inputs, layer=0, head=0)


def test_the_base_is_made_once_in_stripes_that_tell_how_far_they_are(monkeypatch):
    lm = of_call(seen(case("causal").call), 0)
    told = []
    lm.prepare(lambda done, total: told.append((done, total)))
    assert told[-1] == (N, N)
    assert len(told) > 2
    monkeypatch.setattr(lm, "_tiles", None)
    assert lm.window(cells=3).attrs["size"] == 16


def test_blocks_of_another_size_than_a_power_of_two_are_an_overview_too():
    call = case("causal").call
    found = statistics.compute(call, [BlockMap(6)], lse=seen(call).lse)
    lm = of_call(seen(replace(call)), 1)
    lm.call, lm.lse = None, None
    pairs = call.mask.pairs_per_block(6)[0, 0]
    lm.base = module.Blocks(
        6, found["block_mean"][0, 1], found["block_max"][0, 1], pairs
    )
    window = lm.window(cells=2)
    assert window.attrs["size"] == 24
    wanted = truth("causal", 24)[0]["block_mean"][1]
    np.testing.assert_allclose(window["block_mean"], wanted, rtol=1e-4)
