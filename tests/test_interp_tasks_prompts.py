import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import dummy_space_tokenizer, merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks.prompts import build, encode, opening, token_span

MODEL = reader(merging_tokenizer())
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
PROSE = st.sampled_from(
    ["the light", "and the", "Tobias Quill. ", "é", "名前", "\n\n", " ", "The bell."]
)
STRETCH = st.lists(PROSE | TEXT, max_size=6).map("".join)


def decoded(item, span):
    return MODEL.tokenizer.decode(item.ids[slice(*item.spans[span])])


@pytest.mark.parametrize(
    ("stretch", "tokens"),
    [
        ((3, 7), (1, 2)),  # exactly a token
        ((4, 6), (1, 2)),  # inside one
        ((2, 8), (0, 3)),  # straddling on both sides
        ((7, 9), (2, 3)),
        ((0, 10), (0, 4)),
        ((9, 10), (3, 4)),
    ],
)
def test_a_token_across_a_border_belongs_to_the_span(stretch, tokens):
    offsets = [(0, 3), (3, 7), (7, 9), (9, 10)]

    assert token_span(offsets, *stretch) == tokens


def test_tokens_that_cover_no_character_belong_to_no_span():
    assert token_span([(0, 0), (0, 2), (2, 2), (2, 4), (4, 4)], 0, 2) == (1, 2)


def test_a_stretch_without_tokens_is_refused():
    with pytest.raises(InputError, match="5 to 6"):
        token_span([(0, 5)], 5, 6)


@given(STRETCH, STRETCH.filter(str.strip), STRETCH)
def test_the_tokens_of_a_span_hold_its_text(before, needle, after):
    prompt = before + needle + after
    marks = {"needle": (len(before), len(before) + len(needle))}
    item = build(MODEL, "a", prompt, "yes", marks=marks)
    begin, end = item.spans["needle"]
    offsets = encode(MODEL, prompt)[1]

    assert needle in decoded(item, "needle")
    assert offsets[begin][1] > len(before), "the first token is not needed"
    assert offsets[end - 1][0] < len(before + needle), "nor is the last"


def test_a_span_may_lie_inside_a_token_where_words_merge():
    prompt = "The bell in the tower"
    begin = prompt.index("the")
    item = build(MODEL, "a", prompt, "yes", marks={"the": (begin, begin + 3)})

    assert decoded(item, "the") == "in the "


def test_an_opening_token_moves_the_spans_by_one():
    opens = reader(merging_tokenizer(opens=True))
    prompt, marks = "Find the bell here", {"bell": (9, 13)}
    plain = build(MODEL, "a", prompt, "yes", marks=marks)
    opened = build(opens, "a", prompt, "yes", marks=marks)

    assert opened.ids == (0, *plain.ids)
    assert opened.scored == tuple(n + 1 for n in plain.scored)
    assert opened.spans["bell"] == tuple(n + 1 for n in plain.spans["bell"])


def test_the_opening_token_is_known():
    assert opening(merging_tokenizer(opens=True)) == [0]
    assert opening(merging_tokenizer()) == []


@given(STRETCH.filter(str.strip), STRETCH.filter(str.strip))
def test_prompt_and_answer_are_the_tokens_that_a_generation_would_meet(prompt, answer):
    item = build(MODEL, "a", prompt, answer)
    begin, end = item.scored

    assert list(item.ids[:begin]) == MODEL.tokenizer(prompt)["input_ids"]
    assert MODEL.tokenizer.decode(item.ids[begin:end]) == f" {answer}"
    assert end == len(item.ids)


def test_an_answer_is_tokenized_apart_where_it_would_merge_with_the_prompt():
    prompt, answer = "Tobias", "Quill"
    whole = MODEL.tokenizer(f"{prompt} {answer}")["input_ids"]
    item = build(MODEL, "a", prompt, answer)

    assert list(item.ids) != whole
    assert list(item.ids) == [
        *MODEL.tokenizer(prompt)["input_ids"],
        *MODEL.tokenizer(f" {answer}")["input_ids"],
    ]


def test_an_answer_gets_no_second_space_from_the_tokenizer():
    model = reader(dummy_space_tokenizer())
    item = build(model, "a", "The bell of", "the light")

    assert list(item.ids) == model.tokenizer("The bell of the light")["input_ids"]


def test_wrong_answers_share_the_prompt():
    item = build(MODEL, "q", "The sea is", "wet", others=["dry", "made of bells"])
    begin = item.scored[0]

    assert [each.answer for each in item.others] == ["dry", "made of bells"]
    assert [each.name for each in item.others] == ["q-other-1", "q-other-2"]
    assert all(each.ids[:begin] == item.ids[:begin] for each in item.others)
    assert all(each.scored == (begin, len(each.ids)) for each in item.others)


def test_an_item_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match=r"was made for 5\. Make it shorter"):
        build(reader(merging_tokenizer(), 5), "a", "word " * 9, "yes")


def test_a_model_without_a_tokenizer_cannot_read_a_prompt():
    with pytest.raises(InputError, match="came without one"):
        build(reader(None), "a", "The sea is", "wet")
