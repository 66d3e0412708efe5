"""Losses of single tokens: as anybody would compute them, in any company."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from edited_calls import DECODERS
from tiny_models import tiny
from tolerance import assert_as_precise
from torch.nn.functional import cross_entropy

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.heads import HeadSet
from interp.interventions import losses
from interp.interventions.ablation import AblateHeads
from interp.interventions.losses import token_losses


def texts_of(*lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [(tuple(draw.integers(3, 96, n).tolist()),) for n in lengths]


def by_hand(model, text):
    """As anybody would compute them."""
    parts = []
    for ids in torch.tensor(text):
        with torch.no_grad():
            logits = model.module(ids[None], use_cache=False).logits[0, :-1]
        parts.append(cross_entropy(logits, ids[1:], reduction="none"))
    return torch.cat(parts)


def some(model):
    """Changes that begin in different blocks."""
    early, late = ([(0, 1), (1, 2)], [(1, 0)])
    return [
        AblateHeads(HeadSet.of(early, model.anatomy), "uniform"),
        AblateHeads(HeadSet.of(late, model.anatomy), "zero"),
    ]


@pytest.mark.parametrize("family", DECODERS)
def test_they_are_those_of_each_text_alone(family, untouched):
    model = interp.load(tiny(family)[0])
    wide = interp.load(tiny(family)[0].double())
    if family in ("gpt_oss", "deepseek_v3", "llama4"):
        wide.module.set_experts_implementation("eager")  # the other has no float64
    texts, edits = texts_of(20, 5, 2, 17, 20), some(model)
    texts.append((*texts[0], *texts[4]))
    with untouched(model.module):
        found = dict(token_losses(model, texts, edits))
    assert found.keys() == set(texts)
    for run, edit in enumerate([None, *edits]):
        own, true = (edit(each) if edit else nullcontext() for each in (model, wide))
        with own, true:
            eager, truth = (
                torch.cat([by_hand(each, text) for text in texts])
                for each in (model, wide)
            )
        got = torch.cat([torch.from_numpy(found[text][run]) for text in texts])
        assert_as_precise(got.float(), truth, eager, name=f"{family}, run {run}")


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama")[0])


class TestCompany:
    """What runs together is decided by all texts, and by nothing else."""

    @pytest.fixture(autouse=True)
    def small_batches(self, monkeypatch):
        monkeypatch.setitem(losses.TOKENS, "cpu", 40)

    def same(self, found, wanted):
        found = dict(found)
        assert found.keys() <= wanted.keys()
        assert all(np.array_equal(found[text], wanted[text]) for text in found)

    def test_neither_order_nor_copies_nor_workers_change_a_bit(self, model):
        texts, edits = texts_of(9, 30, 12, 12, 11, 5, 41), some(model)
        wanted = dict(token_losses(model, texts, edits))
        shuffled = [texts[k] for k in (3, 1, 1, 6, 0, 5, 2, 4, 3)]
        self.same(token_losses(model, shuffled, edits), wanted)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            self.same(token_losses(model, texts, edits), wanted)
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("known", [1, 4])
    def test_what_is_known_is_not_run_and_changes_no_bit(self, model, known):
        texts, edits = texts_of(9, 30, 12, 12, 11, 5, 41), some(model)
        wanted = dict(token_losses(model, texts, edits))
        done = set(list(wanted)[:known])
        left = dict(token_losses(model, texts, edits, done))
        assert set(texts) - done <= left.keys()
        self.same(left.items(), wanted)
        assert not dict(token_losses(model, texts, edits, set(texts)))

    def test_the_longest_come_first(self, model):
        texts = texts_of(9, 30, 12, 41)
        lengths = [len(text[0]) for text, _ in token_losses(model, texts, [])]
        assert lengths == [41, 30, 12, 9]

    def test_a_batch_is_no_larger_than_asked(self, model, monkeypatch):
        sizes = []
        own = losses._losses

        def seen(model, rows, *rest):
            sizes.append(len(rows) * max(map(len, rows)))
            return own(model, rows, *rest)

        monkeypatch.setattr(losses, "_losses", seen)
        rows = [ids for text in texts_of(20, 20, 20, 20, 20) for ids in text]
        texts = [*texts_of(9, 10, 12, 13, 11, 5, 4, 4, 4, seed=1), tuple(rows)]
        dict(token_losses(model, texts, []))
        assert len(sizes) < 9
        assert max(sizes) <= 40

    def test_no_text_is_no_loss(self, model):
        assert not dict(token_losses(model, [], []))


def test_a_model_whose_blocks_take_more_runs_from_the_first_on(model, monkeypatch):
    texts, edits = texts_of(20, 5), some(model)
    wanted = dict(token_losses(model, texts, edits))

    def refuse(self, model):
        raise UnsupportedModelError("blocks take more")

    monkeypatch.setattr(losses.Prefix, "require_shared", refuse)
    found = dict(token_losses(model, texts, edits))
    assert all(np.array_equal(found[text], wanted[text]) for text in texts)


class TestRefusals:
    def test_inside_an_intervention(self, model):
        [edit, _] = some(model)
        with edit(model), pytest.raises(InputError, match="Leave its block"):
            dict(token_losses(model, texts_of(5), [edit]))

    def test_a_model_that_predicts_no_next_token(self):
        model = interp.load(tiny("bert")[0])
        with pytest.raises(UnsupportedModelError, match="decoder-only"):
            dict(token_losses(model, texts_of(5), []))

    def test_heads_of_another_model_before_anything_runs(self, model, monkeypatch):
        edits = some(interp.load(tiny("gemma3")[0]))
        monkeypatch.setattr(losses, "_losses", None)
        with pytest.raises(InputError, match="Take the heads from this model"):
            dict(token_losses(model, texts_of(5), edits))
