"""Sweeps: equal to the plain loop, resumable to the last bit, away from the model."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_models import N_HEADS, N_LAYERS, tiny

import interp
from interp.errors import InputError, StorageError, UnsupportedModelError
from interp.interventions.ablation import AblateHeads, head_means
from interp.interventions.activations import SetActivations
from interp.interventions.edges import CutEdges
from interp.interventions.prefix import Prefix, Rows, twin
from interp.interventions.screening import rank_agreement, screen
from interp.interventions.sweeping import NONE, single_heads, sweep
from interp.tasks.items import Item

DECODERS = ["llama", "gpt2", "gpt_neox", "gemma2", "gpt_oss", "mistral"]


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama")[0])


def items_of(n=2, length=20, seed=0):
    draw = np.random.default_rng(seed)
    rows = draw.integers(3, 96, (n, length)).tolist()
    return [
        Item(f"item {i}", tuple(ids), (5, length - 2), labels={"length": length})
        for i, ids in enumerate(rows)
    ]


def nll(model, item):
    """As anybody would compute it."""
    begin, end = item.scored
    with torch.no_grad():
        ids = torch.tensor([item.ids])
        logits = model.module(ids, use_cache=False).logits[0].double()
    answer = ids[0, begin:end]
    return float(torch.nn.functional.cross_entropy(logits[begin - 1 : end - 1], answer))


def some(model):
    """Interventions of every kind that a sweep may meet."""
    alone = single_heads(model.anatomy)
    everyone = interp.HeadSet.of([(0, 1), (1, 2)], model.anatomy)
    return {
        "L0.H1": alone["L0.H1"],
        "L1.H2": alone["L1.H2"],
        "L1.H3": alone["L1.H3"],
        "two": AblateHeads(everyone, "uniform"),
        "cut": CutEdges([7, 8, 9], [0, 1]),
        "cell": SetActivations(((2, 0, 3), (1, 4, 5)), 50.0),
        "both": alone["L1.H0"] + SetActivations(((1, 2, 2),), factor=-3.0),
    }


@pytest.mark.parametrize("family", DECODERS)
def test_a_sweep_is_the_plain_loop(family, untouched):
    model = interp.load(tiny(family)[0])
    items, chosen = items_of(), some(model)
    with untouched(model.module):
        table = sweep(model, chosen, items)
    assert list(table["intervention"].values) == [NONE, *chosen]
    for item in items:
        got = table["nll"].sel(item=item.name)
        assert float(got.sel(intervention=NONE)) == pytest.approx(nll(model, item))
        for name, intervention in chosen.items():
            with intervention(model):
                wanted = nll(model, item)
            assert float(got.sel(intervention=name)) == pytest.approx(wanted, abs=1e-5)
    assert (table["kl"].sel(intervention=NONE) == 0).all()
    assert (table["length"] == 20).all()


def test_shared_work_changes_no_bit(model):
    items, chosen = items_of(), some(model)
    shared = sweep(model, chosen, items)
    whole = sweep(model, chosen, items, share=False)
    few = sweep(model, chosen, items, limit=1, n_workers=3)
    for other in (whole, few):
        assert shared.drop_attrs().identical(other.drop_attrs())


def test_a_model_with_forwards_of_its_own_is_not_copied(model, untouched):
    own = interp.load(tiny("llama")[0])
    block = own.module.model.layers[1]
    block.forward = block.forward  # bound to this very module, as accelerate's are
    assert twin(own) is own
    with untouched(own.module):
        table = sweep(own, some(own), items_of())
    assert table.drop_attrs().equals(sweep(model, some(model), items_of()).drop_attrs())


def test_heads_of_a_layer_in_one_batch_are_the_heads_alone(model):
    item, own = items_of(1)[0], twin(model)
    means = head_means(model, [list(item.ids)])
    heads = list(single_heads(model.anatomy).values())[:N_HEADS]
    heads += list(single_heads(model.anatomy, "mean", means).values())[:N_HEADS]
    prefix = Prefix.of(own, item)
    together = prefix.run(own, heads)
    for row, each in zip(together, heads, strict=True):
        torch.testing.assert_close(row, prefix.run(own, [each])[0])
    assert all(each.only_outputs for each in heads)
    assert not Rows(tuple(heads)).only_outputs


def test_single_heads_are_all_heads_by_name(model):
    alone = single_heads(model.anatomy, "uniform")
    assert len(alone) == N_LAYERS * N_HEADS
    assert str(alone["L1.H3"].heads) == "L1.H3"


def test_a_wrong_answer_is_another_run(model):
    right = items_of(1)[0]
    swapped = (*right.ids[:5], *reversed(right.ids[5:]))
    wrong = Item("wrong", swapped, right.scored)
    item = Item("choice", right.ids, right.scored, others=(wrong,))
    table = sweep(model, some(model), [item])
    for name, intervention in some(model).items():
        with intervention(model):
            first = nll(model, right) < nll(model, wrong)
        assert bool(table["choice"].sel(intervention=name).item()) == first


class TestLog:
    """The file that a sweep grows in."""

    def test_a_finished_sweep_runs_nothing_again(self, model, tmp_path, monkeypatch):
        done = sweep(model, some(model), items_of(), out=tmp_path / "s.jsonl")
        monkeypatch.setattr(Prefix, "of", None)
        again = sweep(model, some(model), items_of(), out=tmp_path / "s.jsonl")
        assert done.identical(again)

    @pytest.mark.parametrize("cut", [1, 40, 200])
    def test_a_last_line_that_was_cut_off_is_run_again(self, model, tmp_path, cut):
        path = tmp_path / "s.jsonl"
        done = sweep(model, some(model), items_of(), out=path)
        path.write_bytes(path.read_bytes()[:-cut])
        assert done.identical(sweep(model, some(model), items_of(), out=path))

    def test_a_damaged_line_is_named(self, model, tmp_path):
        path = tmp_path / "s.jsonl"
        sweep(model, some(model), items_of(), out=path)
        lines = path.read_text().splitlines()
        lines[3] = lines[3][:9]
        path.write_text("\n".join([*lines, ""]))
        with pytest.raises(StorageError, match="line 4"):
            sweep(model, some(model), items_of(), out=path)

    def test_another_sweep_is_not_overwritten(self, model, tmp_path):
        path = tmp_path / "s.jsonl"
        sweep(model, some(model), items_of(), out=path)
        with pytest.raises(StorageError, match="its items differs"):
            sweep(model, some(model), items_of(seed=1), out=path)
        fresh = sweep(model, some(model), items_of(seed=1), out=path, resume=False)
        assert fresh.sizes["item"] == 2

    def test_a_file_that_is_no_sweep(self, model, tmp_path):
        path = tmp_path / "s.jsonl"
        path.write_text("once upon a time\n")
        with pytest.raises(StorageError, match="no sweep"):
            sweep(model, some(model), items_of(), out=path)

    def test_a_folder_that_cannot_be_written(self, model, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be written"):
            sweep(model, some(model), items_of(), out=tmp_path / "file" / "s.jsonl")


PROGRAM = """
import os, sys, warnings
sys.path.insert(0, "tests")
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import interp
from tiny_models import tiny
from test_interventions_sweep import items_of, some
from interp.interventions.sweeping import sweep
model = interp.load(tiny("llama")[0])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sweep(model, some(model), items_of(6), out=line.strip())
        os._exit(0)
    sys.stdout.write(f"{child}\\n")
    sys.stdout.flush()
    os.waitpid(child, 0)
    sys.stdout.write("ended\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_finished(model, tmp_path):
    """A process is forked for each attempt, and killed at a random moment."""
    path, draw = tmp_path / "s.jsonl", np.random.default_rng(0)
    whole = sweep(model, some(model), items_of(6), out=tmp_path / "whole.jsonl")
    n_lines = len((tmp_path / "whole.jsonl").read_text().splitlines())
    finished, kills = 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while kills < 50:
            if finished == n_lines:  # whole before the kills are used up: once more
                path.unlink()
                finished = 0
            process.stdin.write(f"{path}\n")
            child = int(process.stdout.readline())
            time.sleep(draw.uniform(0, 0.25))
            try:
                os.kill(child, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                pass  # it was faster
            assert process.stdout.readline() == "ended\n"
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            assert all(json.loads(line) for line in lines)
            assert len(lines) >= finished, "what was finished is lost"
            finished = len(lines)
        process.stdin.close()
    table = sweep(model, some(model), items_of(6), out=path)
    assert table.identical(whole)
    csv = [t.to_dataframe().to_csv().encode() for t in (table, whole)]
    assert csv[0] == csv[1]


class TestRefusals:
    """What cannot be swept is refused before anything runs."""

    def test_no_items(self, model):
        with pytest.raises(InputError, match="none"):
            sweep(model, some(model), [])

    def test_an_item_twice(self, model):
        with pytest.raises(InputError, match="'item 0' twice"):
            sweep(model, some(model), items_of(1) * 2)

    def test_the_name_of_the_untouched_model(self, model):
        with pytest.raises(InputError, match="another name"):
            sweep(model, {NONE: some(model)["cut"]}, items_of())

    def test_blocks_that_take_more_than_the_stream(self):
        model = interp.load(tiny("llama")[0])
        first, last = model.module.model.layers
        handed = {}
        first.register_forward_hook(lambda m, i, o: handed.update(stream=o))
        last.register_forward_hook(lambda m, i, o: o + handed.pop("stream"))
        with pytest.raises(UnsupportedModelError, match="share=False"):
            sweep(model, some(model), items_of())

    def test_inside_another_intervention(self, model):
        with some(model)["cut"](model), pytest.raises(InputError, match=r"with \+"):
            sweep(model, some(model), items_of())


class TestScreening:
    """First order, against finite differences and the exact sweep."""

    def test_the_estimate_is_the_derivative_of_scaling_a_head(self):
        model = interp.load(tiny("llama")[0].double())
        item = items_of(1)[0]
        estimate = screen(model, [item])
        assert all(p.grad is None for p in model.module.parameters())
        step = 3e-3  # RMSNorm computes in float32 whatever the model's type
        for layer, head in [(0, 0), (0, 3), (1, 1)]:
            site = model.anatomy.at("self")[layer]
            owner = model.module.get_submodule(site.module_name)
            at = slice(head * 8, head * 8 + 8)

            def scaled(factor, owner=owner, at=at):
                def hook(_module, inputs):
                    outputs = inputs[0].clone()
                    outputs[..., at] *= factor
                    return (outputs,)

                handle = owner.o_proj.register_forward_pre_hook(hook)
                value = nll(model, item)
                handle.remove()
                return value

            slope = (scaled(1 - step) - scaled(1 + step)) / (2 * step)
            assert float(estimate[layer, head]) == pytest.approx(slope, rel=5e-3)

    def test_a_mean_reference_that_is_the_output_changes_nothing(self, model):
        item = items_of(1)[0]
        means = head_means(model, [list(item.ids)], per_position=True)
        estimate = screen(model, [item], means.transpose("layer", "query", ...))
        assert float(abs(estimate).max()) < 1e-4

    def test_the_ranking_is_compared_with_a_sample_of_exact_ablations(self, model):
        items = items_of()
        report = rank_agreement(model, items, screen(model, items), sample=6)
        exact = sweep(model, single_heads(model.anatomy), items)["nll"].mean("item")
        for name in report["head_name"].values:
            change = exact.sel(intervention=name) - exact.sel(intervention=NONE)
            assert float(report["exact"].sel(head_name=name)) == pytest.approx(
                float(change), abs=1e-6
            )
        low, high = report["spearman_interval"].values
        assert -1 <= low <= float(report["spearman"]) <= high <= 1
        with pytest.raises(InputError, match="3 to"):
            rank_agreement(model, items, screen(model, items), sample=2)
