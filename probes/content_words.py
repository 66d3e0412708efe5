"""The words of a text that say what it is about."""

import re

_FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been
before being below between both but by can cannot could did do does doing down during
each either else even ever every few first for from further had has have having he hence
her here hers herself him himself his how however i if in into is it its itself just let
lets like many may me might more most much must my myself need next no nor not now of
off on once one only or other our ours ourselves out over own s same shall she should
since so some such t than that the their theirs them themselves then there therefore
these they this those through thus to too under until up upon us very was we were what
when where whether which while who whom whose why will with within without would yes yet
you your yours yourself
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that carry no content of their own."""


def content_words(text: str) -> frozenset[str]:
    """Words and numbers in lower case, without function words."""
    return frozenset(re.findall(r"[^\W_]+", text.lower())) - FUNCTION_WORDS


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Share of the words of both that both have; NaN where there are none."""
    return len(a & b) / len(a | b) if a | b else float("nan")
