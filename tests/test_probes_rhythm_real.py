"""The rhythm of the default model: heads of its chains, and what their sinks do."""

import numpy as np
import pytest

import interp
from interp.probes.preplan import rhythm
from interp.probes.rhythm import Rhythm
from interp.tasks import Chains

pytestmark = [pytest.mark.real, pytest.mark.slow]

ASKED = "A farmer has 17 sheep, buys 5 more and sells 8. How many sheep are left?"
ANSWER = (
    "Step 1: The farmer begins with 17 sheep.\nStep 2: He buys 5 more, so that he has "
    "17 + 5 = 22 sheep.\nStep 3: He sells 8 of them, so that 22 - 8 = 14 sheep are "
    "left.\nStep 4: Check: 14 + 8 = 22, and 22 - 5 = 17, which is what he had in the "
    "beginning.\n\nThe farmer has 14 sheep left, so the answer is \\boxed{14}."
)


@pytest.fixture(scope="module")
def found():
    model = interp.load("smollm2-135m", device="cpu")
    items = Chains([{"question": ASKED, "response": ANSWER}]).items(model)
    return rhythm(model, items, Rhythm()).isel(chain=0)


def test_heads_look_from_a_few_tokens_back_to_most_of_the_text(found):
    span = found["span"].sel(sink="with")
    whole = int(found["n_tokens"] + found["prompt_tokens"])

    assert span.min() < 6
    assert 0.15 * whole < span.median() < 0.55 * whole
    assert span.max() > 0.4 * whole


def test_the_sink_decides_most_of_which_heads_are_global(found):
    assert 0.2 < found["overlap"].sel(side="global") < 0.6
    assert 0.3 < found["overlap"].sel(side="local") < 0.75


def test_look_back_lies_in_the_middle_of_its_range_and_peaks_at_turns(found):
    waad = found["waad"]
    assert 4 < waad.min() < waad.max() < 9
    peaks = found["token_text"].values[found["waad_peak"].values.astype(bool)]
    turns = [not any(letter.isalnum() for letter in str(each)) for each in peaks]
    every = [
        not any(letter.isalnum() for letter in str(each))
        for each in found["token_text"].values
    ]
    assert np.mean(turns) > np.mean(every)
