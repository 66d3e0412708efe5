import math

from interp.probes.content_words import content_words, jaccard


def test_function_words_say_nothing():
    said = "The 3 apples, and so on: they ARE apples' prices!"
    assert content_words(said) == {"3", "apples", "prices"}


def test_words_are_alike_by_the_share_that_both_have():
    one, other = frozenset("abc"), frozenset("bcd")
    assert jaccard(one, other) == jaccard(other, one) == 2 / 4
    assert jaccard(one, one) == 1
    assert jaccard(one, frozenset()) == 0
    assert math.isnan(jaccard(frozenset(), frozenset()))
