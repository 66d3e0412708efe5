from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import Hidden, Passkey
from interp.tasks.haystack import hide, sentence_ends, sentences
from interp.tasks.reading import shipped

MODEL = reader(merging_tokenizer())
KEY = Hidden("The key is 12345.", "12345", "Question: Which key?\nAnswer: The key is")
PLAIN = "One two. Three four! Five six? Seven eight."


def hidden(depth=0.5, length=120, haystack=None, model=MODEL):
    haystack = shipped() if haystack is None else haystack
    options = {"depth": depth, "length": length, "labels": {"depth": depth}}
    return hide(model, "a", KEY, haystack=haystack, **options)


def text(item, span=None):
    ids = item.ids if span is None else item.ids[slice(*item.spans[span])]
    return MODEL.tokenizer.decode(ids)


@settings(max_examples=50)
@given(st.integers(60, 700), st.floats(0, 1))
def test_an_item_has_the_length_asked_for_or_a_word_less(length, depth):
    item = hidden(depth, length)

    assert length - 16 <= len(item.ids) <= length
    assert KEY.sentence in text(item, "needle")
    assert KEY.answer in text(item, "value")
    assert text(item, "question").strip() == KEY.question
    assert MODEL.tokenizer.decode(item.ids[slice(*item.scored)]) == " 12345"
    assert item.scored[1] == len(item.ids)


@pytest.mark.parametrize(
    ("depth", "before"),
    [
        (0, ""),
        (0.1, ""),
        (0.25, "One two. "),
        (0.6, "One two. Three four! "),
        (0.99, "One two. Three four! Five six? "),
        (1, "One two. Three four! Five six? "),
    ],
)
def test_the_needle_follows_the_last_sentence_end_at_or_before_the_depth(depth, before):
    item = hidden(depth, 300, PLAIN)

    # The last word of the haystack is where it may be cut, so it goes.
    after = f" {PLAIN[len(before) :]}".removesuffix(" eight.")
    assert text(item).startswith(f"{before}{KEY.sentence}{after}\n\n{KEY.question}")


def test_a_cut_haystack_ends_behind_a_word():
    for length in range(70, 90):
        hay = text(hidden(0, length)).removeprefix(f"{KEY.sentence} ")
        hay = hay.partition("\n\nQuestion")[0]

        assert shipped().startswith(hay)
        assert shipped()[len(hay)].isspace()


def test_a_text_without_spaces_is_cut_anywhere():
    item = hidden(0.5, 200, "光が見える。" * 200)

    assert 150 <= len(item.ids) <= 200
    assert f"。 {KEY.sentence}光" in text(item)


def test_a_short_haystack_begins_anew():
    task = Passkey(lengths=(400,), depths=(0.9,), haystack=PLAIN)
    item = task.items(MODEL)[0]

    assert 380 <= len(item.ids) <= 400
    assert text(item).count("Five six?") > 5


@pytest.mark.parametrize(
    ("length", "model", "named"),
    [
        (30, MODEL, r"30 tokens.*alone take \d+\. Ask for lengths from \d+ on"),
        (500, reader(merging_tokenizer(), 499), "made for 499. Ask for lengths up to"),
    ],
)
def test_a_length_that_does_not_fit_is_refused(length, model, named):
    with pytest.raises(InputError, match=named):
        hidden(0.5, length, model=model)


def test_the_smallest_length_that_is_named_fits():
    with pytest.raises(InputError) as error:
        hidden(0.5, 1)
    smallest = int(str(error.value).split("from ")[1].split(" on")[0])

    assert len(hidden(0.5, smallest).ids) == smallest
    with pytest.raises(InputError):
        hidden(0.5, smallest - 1)


def test_a_haystack_without_sentences_is_refused():
    with pytest.raises(InputError, match="no sentence end"):
        Passkey(haystack="a list of words").items(MODEL)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A. B! C?", ["A.", "B!", "C?"]),
        ('He said "go." She went.', ['He said "go."', "She went."]),
        ("1. Eat. 2. Sleep...", ["1. Eat.", "2. Sleep..."]),
        ("Version 1.5 is old. New", ["Version 1.5 is old."]),
        ("One.\n\nTwo. One.", ["One.", "Two."]),
        ("光が見える。月。", ["光が見える。", "月。"]),
        ("no end", []),
    ],
)
def test_sentences_end_where_a_reader_says(text, found):
    assert sentences(text) == found


def test_sentence_ends_lie_behind_quotes():
    assert sentence_ends('"Go." No') == [5]


TEMPLATE = """{% for m in messages %}{{ bos_token if loop.first }}[{{ m.role }}]
{{ m.content }}
{% endfor %}{% if add_generation_prompt %}[assistant]
{% endif %}"""


@pytest.mark.parametrize("opens", [False, True])
def test_a_chat_asks_as_its_template_does_and_begins_the_reply(opens):
    tokenizer = deepcopy(merging_tokenizer(opens))
    tokenizer.chat_template = TEMPLATE
    model = reader(tokenizer)
    for item in Passkey((200,), (0.5,), (0,), chat=True).items(model):
        said = tokenizer.decode(item.ids)
        assert said.startswith("<s>[user]\n")
        assert said.count("<s>") == 1
        says = "The special magic number for Orlen is"
        end = f"for Orlen?\nAnswer:\n[assistant]\n{says} {item.answer}"
        assert said.endswith(end)
        for name in ("needle", "value"):
            begin, end = item.spans[name]
            assert item.answer in tokenizer.decode(item.ids[begin:end])
        question = tokenizer.decode(item.ids[slice(*item.spans["question"])])
        assert question.strip().endswith(says)
        assert len(item.ids) <= 200


def test_a_chat_needs_a_template():
    with pytest.raises(InputError, match="no chat template"):
        Passkey((200,), chat=True).items(MODEL)


def test_the_beginning_of_a_reply_is_the_end_of_the_question():
    with pytest.raises(InputError, match="'The key' is not that of"):
        Hidden("The key is 1.", "1", "Question: Which?\nAnswer:", "The key")
