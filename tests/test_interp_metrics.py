import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_as_precise

from interp import metrics
from interp.errors import ShapeError
from interp.metrics import rouge_recall, score
from interp.tasks import Item

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALVES = math.log(0.5), math.log(0.25), math.log(0.25)


def an_item(*target, before=2):
    ids = (*[0] * before, *target)
    return Item("a", ids, (before, len(ids)))


def dense(logits, target, base):
    """The definitions over whole matrices."""
    rows = torch.arange(len(target))
    log_p, log_base = logits.log_softmax(-1), base.log_softmax(-1)
    chosen = logits.argmax(-1)
    return {
        "nll": -log_p[rows, target].mean(),
        "accuracy": (chosen == target).to(logits.dtype).mean(),
        "exact": (chosen == target).all().to(logits.dtype),
        "kl": (log_base.exp() * (log_base - log_p)).sum(-1).mean(),
        "agreement": (chosen == base.argmax(-1)).to(logits.dtype).mean(),
    }


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n", "vocab"), [(1, 7), (7, 129), (29, 252)])
@pytest.mark.parametrize("chunk", [1, 1000, metrics.CHUNK])
def test_every_metric_is_its_dense_definition(monkeypatch, kind, n, vocab, chunk):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    torch.manual_seed(n)
    logits = (5 * torch.randn(n, vocab)).to(kind)
    base = (logits + torch.randn(n, vocab)).to(kind)
    target = torch.where(torch.rand(n) < 0.5, logits.argmax(-1), 3)
    scores = score(logits, an_item(*target.tolist()), base)

    wide = kind if kind == torch.float64 else torch.float32
    truth = dense(logits.double(), target, base.double())
    eager = dense(logits.to(wide), target, base.to(wide))
    assert scores.keys() == truth.keys()
    for name, value in scores.items():
        ours = torch.tensor(value, dtype=wide)
        assert_as_precise(ours, truth[name], eager[name].double(), name=name)


def test_a_row_that_can_be_computed_by_hand():
    logits = torch.tensor([HALVES, HALVES])

    assert score(logits, an_item(0, 1)) == {
        "nll": pytest.approx((math.log(2) + math.log(4)) / 2),
        "accuracy": 0.5,
        "exact": 0.0,
    }
    assert score(logits, an_item(0, 0))["exact"] == 1


def test_divergence_is_from_the_base_to_this():
    base = torch.tensor([HALVES], dtype=torch.float64)
    even = torch.zeros(1, 3, dtype=torch.float64)
    there = 0.5 * math.log(3 / 2) + 2 * 0.25 * math.log(3 / 4)
    back = (math.log(2 / 3) + 2 * math.log(4 / 3)) / 3

    assert score(even, an_item(0), base)["kl"] == pytest.approx(there)
    assert score(base, an_item(0), even)["kl"] == pytest.approx(back)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_differs_from_itself(kind):
    logits = torch.randn(5, 33).to(kind)
    scores = score(logits, an_item(1, 2, 3, 4, 5), logits)

    assert scores["kl"] == 0
    assert scores["agreement"] == 1


def test_a_shift_of_all_logits_changes_nothing():
    logits = torch.randn(5, 33, dtype=torch.float64)
    item = an_item(1, 2, 3, 4, 5)

    assert score(logits + 100, item, logits) == pytest.approx(
        score(logits, item, logits)
    )


def test_a_token_that_the_base_rules_out_adds_nothing_to_the_divergence():
    base = torch.tensor([[0.0, 0.0, -math.inf]])
    logits = torch.zeros(1, 3)

    assert score(logits, an_item(0), base)["kl"] == pytest.approx(math.log(3 / 2))
    assert score(base, an_item(0), base)["kl"] == 0
    assert score(base, an_item(0), logits)["kl"] == math.inf


def test_logits_are_left_as_they_are():
    logits = torch.randn(4, 9)
    before = logits.clone()
    score(logits, an_item(1, 2, 3, 4), logits)

    assert torch.equal(logits, before)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_are_not_the_scored_ones_are_refused(rows):
    with pytest.raises(ShapeError, match=rf"2 tokens of item a .* \({rows}, 5\)"):
        score(torch.zeros(rows, 5), an_item(1, 2))


@pytest.mark.parametrize(
    ("prediction", "reference", "recall"),
    [
        ("the cat sat", "the cat sat", 1),
        ("The CAT, sat!", "the cat sat.", 1),
        ("cat", "the cat sat", 1 / 3),
        ("the the the", "the cat the", 2 / 3),
        ("a the b the", "the", 1),
        ("", "the cat", 0),
        ("Größe élan", "größe", 1),
        ("anything", "...", math.nan),
        ("anything", "", math.nan),
    ],
)
def test_recall_is_the_share_of_the_references_words(prediction, reference, recall):
    assert rouge_recall(prediction, reference) == pytest.approx(recall, nan_ok=True)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1).map(" ".join)


@given(WORDS, WORDS, WORDS)
def test_more_words_never_lower_the_recall(prediction, more, reference):
    least = rouge_recall(prediction, reference)

    assert 0 <= least <= rouge_recall(f"{prediction} {more}", reference) <= 1
    assert rouge_recall(f"{more} {prediction}", prediction) == 1
