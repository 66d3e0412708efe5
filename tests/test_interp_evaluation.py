import math

import numpy as np
import pytest
import torch
from tiny_models import ENCODER_DECODERS, VOCAB, tiny, tiny_tokenizer
from torch import nn

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.evaluation import VARIABLES, decode, evaluate, logits
from interp.metrics import score
from interp.tasks import Choices, Item, RepeatedTokens

DECODERS = ["llama", "gpt2", "gemma2", "mistral", "gpt_neox", "falcon", "mamba"]


def a_model(family="llama", tokenizer=None):
    return interp.load(tiny(family)[0], tokenizer=tokenizer or tiny_tokenizer())


def an_item(name="a", begin=5, end=9, n=12, **options):
    ids = torch.randint(3, VOCAB, (n,), generator=torch.manual_seed(0)).tolist()
    return Item(name, tuple(ids), (begin, end), **options)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(("begin", "end"), [(1, 12), (5, 9), (11, 12), (1, 2)])
def test_logits_are_of_the_rows_that_predict_the_scored_tokens(family, begin, end):
    model, item = a_model(family), an_item(begin=begin, end=end)
    with torch.no_grad():
        full = model.module(input_ids=torch.tensor([item.ids])).logits[0]
    ours = logits(model, item)

    assert ours.shape == (end - begin, VOCAB)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, full[begin - 1 : end - 1])


def test_only_the_rows_that_are_wanted_are_computed():
    model, rows = a_model(), []
    seen = model.module.lm_head.register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[1])
    )
    logits(model, an_item(begin=9, end=12))
    seen.remove()

    assert rows == [4]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(untouched, training):
    model = a_model("gpt2")
    model.module.train(training)
    with untouched(model.module):
        first = evaluate(model, [an_item(answer="w5")], rouge=True)
        again = evaluate(model, [an_item(answer="w5")], rouge=True)

    assert first.equals(again), "dropout was at work"


def test_modes_come_back_after_a_failure(untouched):
    model = a_model("gpt2")
    model.module.train()

    def fail(*_):
        raise RuntimeError

    hook = model.module.transformer.h[1].register_forward_hook(fail)
    with untouched(model.module), pytest.raises(RuntimeError):
        evaluate(model, [an_item()])
    hook.remove()


def test_a_change_in_force_is_seen():
    model, item = a_model(), an_item()
    base = logits(model, item)
    handle = model.module.model.layers[0].register_forward_hook(
        lambda module, inputs, output: output * 0.5
    )
    changed = evaluate(model, [item], base=[base])
    handle.remove()
    same = evaluate(model, [item], base=[base])

    assert changed["kl"].item() > 0.01
    assert same["kl"].item() == 0
    assert same["agreement"].item() == 1


def test_the_table_has_every_metric_with_unit_and_every_label():
    model = a_model()
    items = [
        an_item("a", labels={"length": 12, "text": "one"}, answer="w7"),
        an_item("b", begin=3, labels={"length": 12, "depth": 0.5}),
    ]
    base = [logits(model, item) for item in items]
    table = evaluate(model, items, base=base, rouge=True)

    assert set(table) == VARIABLES.keys() - {"choice"}
    assert table["item"].values.tolist() == ["a", "b"]
    assert table["length"].values.tolist() == [12, 12]
    assert table["text"].values.tolist() == ["one", ""]
    assert math.isnan(table["depth"].values[0])
    assert np.isnan(table["rouge"].values).tolist() == [False, True]
    for name, variable in table.items():
        assert variable.dims == ("item",)
        assert (variable.units, variable.long_name) == VARIABLES[name]
    for n, item in enumerate(items):
        expected = score(base[n], item, base[n])
        assert {k: table[k].values[n] for k in expected} == pytest.approx(expected)


def test_only_what_is_asked_for_is_measured():
    assert set(evaluate(a_model(), [an_item()])) == {"nll", "accuracy", "exact"}


def test_exact_means_that_greedy_decoding_gives_the_answer():
    model = a_model()
    prompt = torch.randint(3, VOCAB, (1, 7), generator=torch.manual_seed(1))
    greedy = model.module.generate(
        prompt, do_sample=False, max_new_tokens=4, eos_token_id=-1, pad_token_id=0
    )[0].tolist()
    for place in range(4):
        wrong = list(greedy)
        wrong[7 + place] = 3 if wrong[7 + place] != 3 else 4
        items = [Item("right", (*greedy,), (7, 11)), Item("wrong", (*wrong,), (7, 11))]

        assert evaluate(model, items)["exact"].values.tolist() == [1, 0]


def test_decoding_is_greedy_and_at_most_twice_as_long_as_the_answer():
    model, item = a_model(), an_item(begin=5, end=8)
    model.module.generation_config.repetition_penalty = 5.0
    model.module.generation_config.eos_token_id = None
    ids = list(item.ids[:5])
    with torch.no_grad():
        for _ in range(6):
            row = model.module(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(row.argmax()))

    expected = model.tokenizer.decode(ids[5:], skip_special_tokens=True)
    assert decode(model, item) == expected
    words = Item("a", item.ids, item.scored, answer=f"{expected} elsewhere")
    n = len(set(expected.split()))
    share = evaluate(model, [words], rouge=True)["rouge"].item()
    assert n / (n + 1) <= share < 1


def test_the_answer_with_the_lowest_nll_per_token_is_chosen():
    model = a_model()
    questions = [
        {
            "question": f"w{n} w{n + 1}",
            "choices": ["w5", "w6 w7", "w8"],
            "answer": n % 3,
        }
        for n in range(3, 20)
    ]
    items = Choices(questions).items(model)
    table = evaluate(model, items)

    for item, right, nll in zip(items, table["choice"], table["nll"], strict=True):
        wrong = [score(logits(model, each), each)["nll"] for each in item.others]
        assert right.item() == (nll.item() < min(wrong))
        assert nll.item() == pytest.approx(score(logits(model, item), item)["nll"])
    assert {0, 1} == set(table["choice"].values)


def test_items_without_choices_have_no_choice():
    other = an_item("other", begin=6)
    items = [an_item("a", others=(other,)), an_item("b")]

    assert np.isnan(evaluate(a_model(), items)["choice"].values).tolist() == [
        False,
        True,
    ]


def test_progress_is_told_after_each_item():
    told = []
    evaluate(
        a_model(), [an_item("a"), an_item("b")], progress=lambda *n: told.append(n)
    )

    assert told == [(1, 2), (2, 2)]


def test_a_model_without_a_tokenizer_does_repeated_tokens():
    model = interp.load(tiny("llama")[0])
    items = RepeatedTokens(block=8, copies=2, seeds=(0, 1)).items(model)
    table = evaluate(model, items)

    assert table["seed"].values.tolist() == [0, 1]
    with pytest.raises(InputError, match="without a tokenizer"):
        evaluate(model, items, rouge=True)


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, "bert", "vit", "modernbert"])
def test_what_is_no_decoder_only_language_model_is_refused(family):
    model = interp.load(tiny(family)[0])
    with pytest.raises(UnsupportedModelError, match="decoder-only"):
        logits(model, an_item())
    with pytest.raises(UnsupportedModelError, match="decoder-only"):
        evaluate(model, [an_item()])


def test_a_model_without_its_head_is_refused():
    bare = tiny("llama")[0].model
    with pytest.raises(UnsupportedModelError, match="LlamaModel does not generate"):
        evaluate(interp.load(bare), [an_item()])


def test_an_item_longer_than_the_context_is_refused_before_anything_is_run():
    model, told = a_model(), []
    items = [an_item("a"), an_item("long", n=65)]
    with pytest.raises(InputError, match=r"Item long has 65 tokens.* made for 64"):
        evaluate(model, items, progress=lambda *n: told.append(n))
    assert not told


@pytest.mark.parametrize(
    ("names", "options", "named"),
    [
        ([], {}, "one or more items"),
        (["a", "a"], {}, "different names"),
        (["a", "b"], {"base": [torch.zeros(4, VOCAB)]}, "2 items .* got 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(names, options, named):
    with pytest.raises(InputError, match=named):
        evaluate(a_model(), [an_item(name) for name in names], **options)


def test_a_damaged_model_gives_nan_and_no_error():
    model = a_model()
    nn.init.constant_(model.module.model.norm.weight, math.nan)
    table = evaluate(model, [an_item()], base=[torch.zeros(4, VOCAB)])

    assert math.isnan(table["nll"].item())
    assert math.isnan(table["kl"].item())
    assert table["exact"].item() == 0
