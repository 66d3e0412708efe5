import pytest
from tiny_tokenizers import merging_tokenizer, reader

from interp.errors import InputError
from interp.tasks import Hidden, Needle, Passkey
from interp.tasks.passkey import NATO

MODEL = reader(merging_tokenizer(), 8192)


def decoded(item, span=None):
    ids = item.ids if span is None else item.ids[slice(*item.spans[span])]
    return MODEL.tokenizer.decode(ids)


def test_there_is_an_item_at_every_length_and_depth():
    items = Passkey(lengths=(300, 500), depths=(0.25, 1), seeds=(3, 4)).items(MODEL)

    assert [item.name for item in items] == [
        *("300-0.25-3", "300-0.25-4", "300-1-3", "300-1-4"),
        *("500-0.25-3", "500-0.25-4", "500-1-3", "500-1-4"),
    ]
    assert items[3].labels == {"length": 300, "depth": 1, "seed": 4}


def test_a_number_of_five_digits_is_hidden_once_and_asked_for():
    for item in Passkey().items(MODEL):
        assert item.answer.isdecimal()
        assert len(item.answer) == 5
        assert decoded(item).count(item.answer) == 2
        assert f"Orlen is {item.answer}." in decoded(item, "needle")
        assert decoded(item).endswith(f"Orlen is {item.answer}")


def test_words_of_the_nato_alphabet_differ():
    for item in Passkey(kind="nato", words=26).items(MODEL):
        assert sorted(item.answer.split()) == sorted(NATO)


def test_an_item_depends_on_its_own_cell_alone():
    one = Passkey(lengths=(400,), depths=(0.5,), seeds=(1,)).items(MODEL)[0]
    among = {item.name: item for item in Passkey(lengths=(300, 400)).items(MODEL)}

    assert one == among["400-0.5-1"]


def test_seeds_hide_other_numbers_at_other_places_of_the_text():
    items = Passkey(lengths=(400,), depths=(0.5,), seeds=tuple(range(8))).items(MODEL)

    assert len({item.answer for item in items}) == 8
    assert len({item.ids[:8] for item in items}) > 4


def test_needles_take_turns():
    items = Needle(lengths=(300,), depths=(0.5,), seeds=(0, 1, 2, 3)).items(MODEL)

    assert [item.answer for item in items[:3]] != [items[0].answer] * 3
    assert items[3].answer == items[0].answer
    assert all(f"{item.answer}." in decoded(item, "needle") for item in items)


def test_a_needle_of_ones_own_is_hidden():
    own = Hidden("Mara keeps bees.", "bees", "Question: What?\nAnswer: Mara keeps")
    item = Needle(lengths=(300,), depths=(1,), needles=(own,)).items(MODEL)[0]

    assert "Mara keeps bees." in decoded(item, "needle")
    assert decoded(item).endswith("Mara keeps bees")


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"kind": "letters"}, "'letters'"),
        ({"kind": "nato", "words": 27}, "27 words"),
        ({"kind": "nato", "words": 0}, "0 words"),
        ({"depths": (0.5, 1.5)}, "1.5"),
        ({"depths": ()}, "depths that differ"),
        ({"seeds": (1, 1)}, "seeds that differ"),
        ({"seeds": (-1,)}, "-1"),
        ({"lengths": (-512,)}, "-512"),
    ],
)
def test_a_knob_that_means_nothing_is_refused(knobs, named):
    with pytest.raises(InputError, match=named):
        Passkey(**knobs)


def test_a_needle_must_hold_its_answer():
    with pytest.raises(InputError, match="'bees' is not in 'Mara keeps hens"):
        Hidden("Mara keeps hens.", "bees", "What?")
    with pytest.raises(InputError, match="needles is empty"):
        Needle(needles=())
