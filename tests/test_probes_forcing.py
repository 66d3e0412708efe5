"""Forced tokens against loops of whole forwards, on tiny models of three families."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, tiny, tiny_tokenizer

import interp
from interp.errors import InputError
from interp.probes.forcing import ForcedTokens
from interp.probes.preplan import rhythm
from interp.probes.reading import Bootstrap
from interp.probes.receivers import Receivers
from interp.probes.rhythm import Rhythm
from interp.tasks import Item

FAMILIES = ("llama", "gemma3", "gpt_oss")
"""Grouped heads, sliding windows, learned sinks."""
N, PROMPT = 40, 6
OPTIONS = Rhythm(receivers=Receivers(2, 1))
FORCED = ForcedTokens(
    alternatives=3, n_tokens=5, pairs=2, share=0.3, horizon=(1, 8), options=OPTIONS
)
NAN = np.nan


def chain(seed=0, name="a"):
    ids = torch.randint(3, VOCAB, (N,), generator=torch.manual_seed(seed)).tolist()
    return Item(name, tuple(ids), (PROMPT, N))


def load(family):
    return interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def llama():
    return load("llama")


def by_loops(model, ids, at):
    """Likeness of what follows: every token of every continuation by its own forward.

    Words of the tiny tokenizer are tokens; the first behind the place is left out, as
    it stands without a space in front.
    """
    module, tokenizer = model.module, model.tokenizer

    def logits(tokens):
        with torch.no_grad():
            return module(torch.tensor([tokens])).logits[0, -1]

    def words(tokens):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return set(re.sub(r"^\w+", "", text).split())

    def likeness(forced):
        tokens = [*ids[:at], forced]
        for _ in range(FORCED.n_tokens):
            tokens.append(int(logits(tokens).argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        ours = words(tokens[at + 1 :])
        return len(ours & original) / len(ours | original) if ours | original else NAN

    original = words(list(ids[at + 1 : at + 1 + FORCED.n_tokens]))
    ranked = logits(list(ids[:at])).argsort(descending=True).tolist()
    others = [each for each in ranked if each != ids[at]][: FORCED.alternatives]
    return likeness(ids[at]), np.nanmean([likeness(each) for each in others])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_is_what_whole_forwards_give(family):
    model, item = load(family), chain()
    found = FORCED.run(model, [item])

    assert found.sizes["pair"] == 2
    for pair in range(2):
        for level in ("high", "low"):
            one = found.isel(pair=pair).sel(level=level)
            at = PROMPT + int(one["token"])
            unforced, forced = by_loops(model, item.ids, at)
            np.testing.assert_allclose(one["unforced"], unforced)
            np.testing.assert_allclose(one["jaccard"], forced)
            assert one["token_text"].item() == f"w{item.ids[at]}"


def test_places_are_where_influence_is_high_and_low(llama):
    found = FORCED.run(llama, [chain()])
    options = replace(OPTIONS, horizons=(FORCED.horizon,))
    fai = rhythm(llama, [chain()], options)["fai"].values[0, 0]

    places = found["token"].values.astype(int)
    np.testing.assert_array_equal(found["fai"], fai[places])
    able = fai[: N - PROMPT - FORCED.n_tokens]
    able = np.sort(able[np.isfinite(able)])
    n_each = int(0.3 * len(able))
    assert (found["fai"].sel(level="high") >= able[-n_each]).all()
    assert (found["fai"].sel(level="low") <= able[n_each - 1]).all()


def test_a_pair_is_two_places_that_are_near_each_other():
    fai = np.array([9, 0, 5, 5, 5, 5, 5, 1, 8, NAN, 5, 5, 5])
    forced = replace(FORCED, n_tokens=2, share=0.2, pairs=9)

    pairs = forced.places(fai)
    assert {tuple(each) for each in pairs.tolist()} == {(0, 1), (8, 7)}
    # Where nothing follows, and where FAI is unknown, nothing is forced.
    assert forced.places(np.array([1.0, 2, NAN])).size == 0
    (nearest,) = replace(forced, pairs=1, share=0.5).places(np.arange(8.0))
    assert nearest.tolist() == [3, 2]


def test_several_chains_are_the_units_and_a_single_ones_pairs(llama):
    bootstrap = Bootstrap(resamples=50)
    one = FORCED.run(llama, [chain()], bootstrap=bootstrap)
    both = FORCED.run(llama, [chain(), chain(1, "b")], bootstrap=bootstrap)

    gap = one["jaccard"].sel(level="high") - one["jaccard"].sel(level="low")
    np.testing.assert_allclose(one["difference"], gap.dropna("pair"))
    assert "pairs" in one.attrs["interval"]
    assert both["chain"].values.tolist() == ["a", "a", "b", "b"]
    assert "2 chains" in both.attrs["interval"]
    own = both["jaccard"].sel(level="high") - both["jaccard"].sel(level="low")
    means = own.groupby("chain").mean().values
    np.testing.assert_allclose(both["difference"], means)
    assert both.attrs["mean_difference"] == pytest.approx(means.mean())
    low, high = both.attrs["interval_low"], both.attrs["interval_high"]
    assert low <= both.attrs["mean_difference"] <= high
    unequal = means[means != 0]
    if unequal.size:
        assert both.attrs["share_lower"] == np.mean(unequal < 0)


def test_places_that_were_forced_are_kept(llama, tmp_path, monkeypatch):
    told = []
    whole = FORCED.run(
        llama, [chain()], folder=tmp_path, progress=lambda *said: told.append(said)
    )
    assert told[0] == ("forcing", 0, 4)
    assert told[-1] == ("forcing", 4, 4)
    assert len(list(tmp_path.iterdir())) == 4

    monkeypatch.setattr(ForcedTokens, "_force", pytest.fail)
    again = FORCED.run(llama, [chain()], folder=tmp_path)
    np.testing.assert_array_equal(again["jaccard"], whole["jaccard"])


def test_the_model_is_left_as_it_was(llama, untouched):
    with untouched(llama.module):
        replace(FORCED, pairs=1).run(llama, [chain()])


def test_what_leaves_nothing_to_compare_is_refused(llama):
    with pytest.raises(InputError, match="no chain has enough such places"):
        replace(FORCED, n_tokens=N).run(llama, [chain()])
    bare = interp.load(tiny("llama")[0])
    with pytest.raises(InputError, match="came without a tokenizer"):
        FORCED.run(bare, [chain()])


@pytest.mark.parametrize(
    "options", [{"alternatives": 0}, {"n_tokens": 0}, {"pairs": 0}, {"share": 0.6}]
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(InputError, match="Usual are 5, 50, 5 and"):
        replace(FORCED, **options)
