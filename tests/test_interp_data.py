from importlib.resources import files

import pytest

TEXT = files("interp").joinpath("data", "lighthouse.txt").read_text(encoding="utf-8")


def test_the_demo_text_is_long_enough_to_show_how_far_heads_look():
    assert 3_000 <= len(TEXT.split()) <= 3_500


def test_the_demo_text_is_plain_ascii():
    assert TEXT.isascii()


@pytest.mark.parametrize(
    "part", ['"Read me the first line,"', "\n1. ", "\n```python\n"]
)
def test_the_demo_text_holds_dialogue_a_list_and_code(part):
    assert part in TEXT


def test_the_other_haystack_is_long_plain_and_about_something_else():
    other = files("interp").joinpath("data", "orchard.txt").read_text(encoding="utf-8")

    assert len(other.split()) >= 1_200
    assert other.isascii()
    names = {"Tobias", "Quill", "Maren", "Orrin", "Velmora", "Tarn", "Orlen"}
    assert not names & set(other.replace(".", " ").replace(",", " ").split())


@pytest.mark.parametrize("name", ["Tobias Quill", "Maren", "Saint Ansgar", "Light lit"])
def test_the_demo_text_repeats_its_names(name):
    assert TEXT.count(name) >= 10
