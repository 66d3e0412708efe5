"""Published claims: the rule that judges them, and evidence whose answer is known."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.app.replications import read_replications
from interp.app.study_file import StudyFile
from interp.errors import InputError
from interp.probes.replications.claim import (
    FAILS,
    HOLDS,
    IN_PART,
    UNTESTED,
    VERDICTS,
    Evidence,
    verdict,
)
from interp.probes.replications.head_kinds import InductionAndEcho
from interp.probes.replications.maps import (
    AdjacentLayers,
    KeysOverLayers,
    KeysOverSteps,
    near_and_far,
    top_keys,
)
from interp.probes.replications.registry import CLAIMS, claimed
from interp.probes.replications.sinks import says_little
from interp.uncertainty import statistic_interval

DOCS = Path(__file__).parent.parent / "docs"


def measured(low, high, **bounds):
    """Evidence with an interval."""
    return Evidence("what", "unit", (low + high) / 2, low, high, "3 texts", **bounds)


AGREES = measured(0.6, 0.9, least=0.5)
DISAGREES = measured(0.1, 0.4, least=0.5)
OPEN = measured(0.4, 0.6, least=0.5)


class TestRule:
    @pytest.mark.parametrize(
        ("evidence", "expected"),
        [
            ((AGREES, AGREES), HOLDS),
            ((AGREES, OPEN), IN_PART),
            ((AGREES, DISAGREES), IN_PART),
            ((DISAGREES, DISAGREES), FAILS),
            ((DISAGREES, OPEN), UNTESTED),
            ((), UNTESTED),
        ],
    )
    def test_a_verdict_follows_from_the_intervals(self, evidence, expected):
        assert verdict(evidence) == expected

    def test_an_interval_on_the_edge_is_inside(self):
        assert measured(0.5, 0.7, least=0.5, most=0.7).agrees is True

    def test_a_range_has_two_sides(self):
        assert measured(0.8, 0.9, least=0.5, most=0.7).agrees is False

    def test_without_an_interval_nothing_is_decided(self):
        single = Evidence.mean("what", "unit", [0.9], "texts", least=0.5)
        assert single.agrees is None
        assert verdict([single]) == UNTESTED

    def test_a_mean_leaves_out_what_was_not_measured(self):
        found = Evidence.mean("what", "unit", [1.0, np.nan, 3.0], "texts")
        assert (found.value, found.over) == (2.0, "2 texts")
        assert 1.0 <= found.low <= 2.0 <= found.high <= 3.0

    def test_a_statistic_that_is_a_mean_has_the_interval_of_a_mean(self):
        values = np.random.default_rng(0).normal(size=40)
        low, high = statistic_interval(lambda index: values[index].mean(), 40)
        own = Evidence.mean("what", "unit", values, "texts")
        assert (low, high) == pytest.approx((own.low, own.high), abs=0.05)


class TestHandMade:
    def test_the_top_keys_are_the_first_of_equals(self):
        np.testing.assert_array_equal(
            top_keys(np.array([[1.0, 3.0, 3.0, 2.0]]), 2), [[False, True, True, False]]
        )

    def test_near_layers_are_neighbours_and_far_ones_a_third_apart(self):
        similarity = np.subtract.outer(range(6), range(6)) ** 2.0
        near, far = near_and_far(similarity)
        assert near == 1.0
        assert far == np.mean([4] * 8 + [9] * 6 + [16] * 4 + [25] * 2)

    def test_layers_that_are_equal_are_as_alike_near_as_far(self):
        own = np.tril(np.random.default_rng(0).random((24, 24)))
        maps = as_maps(
            np.broadcast_to(own / own.sum(-1, keepdims=True), (6, 2, 24, 24))
        )
        assert AdjacentLayers().read(maps) == pytest.approx((1, 0, 1, 0))
        assert KeysOverLayers().read(maps) == pytest.approx((1, 0))

    def test_keys_that_stay_hold_all_of_the_attention(self):
        weights = np.zeros((2, 2, 40, 40))
        weights[..., 6] = weights[..., 0] = 0.5  # neither among the first 4 nor recent
        held, more, rest, more_of_rest = KeysOverSteps(steps=10).read(as_maps(weights))
        assert (held, rest) == (1.0, 1.0)
        assert more == pytest.approx(0.5)
        assert more_of_rest == pytest.approx(1.0)

    def test_a_word_without_content_says_little(self):
        assert [w for w in (" the", ".", "\n", " lamp", "7") if says_little(w)] == [
            " the",
            ".",
            "\n",
        ]

    def test_a_random_model_has_no_copying_heads(self):
        model = interp.load(tiny("llama")[0], tokenizer=tiny_tokenizer())
        few_induction, few_echo, *_ = InductionAndEcho(n_seeds=2, block=8).measure(
            model
        )
        assert few_induction.agrees is not None
        assert few_echo.unit == "% of heads"


def as_maps(values):
    """Maps as a trace holds them, two heads to a KV head."""
    values = np.asarray(values)
    coords = {"kv_head": ("head", np.arange(values.shape[1]) // 2)}
    return xr.DataArray(values, dims=("layer", "head", "query", "key"), coords=coords)


class TestSettings:
    def test_a_claim_takes_its_knobs(self):
        assert claimed({"claim": "later_sinks", "n_texts": 3}).n_texts == 3
        lengths = claimed({"claim": "few_retrieval_heads", "lengths": [100]}).lengths
        assert lengths == (100,)

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"claim": "later_sink"}, "Did you mean later_sinks?"),
            ({"claim": "later_sinks", "n_text": 3}, "Choose of n_texts"),
            ({"claim": "later_sinks", "n_texts": 0}, "is like 8"),
            ({"claim": "later_sinks", "n_texts": "many"}, "Write it like that"),
        ],
    )
    def test_what_there_is_not_is_refused(self, settings, says):
        with pytest.raises(InputError, match=re.escape(says)):
            claimed(settings)


class TestPage:
    """The committed page: all claims, and verdicts that follow from its own tables."""

    def sections(self):
        page = (DOCS / "replications.md").read_text("utf-8")
        names = re.findall(r'<a id="(\w+)"></a>', page)
        return dict(zip(names, page.split('<a id="')[1:], strict=True))

    def test_it_holds_every_claim_that_its_settings_name(self):
        asked = read_replications(StudyFile.read(DOCS / "replications.toml"))
        names = [claim.name for _, claim in asked.claims]
        assert list(self.sections()) == names
        assert names == [name for name in CLAIMS if name in names]

    def test_each_verdict_follows_from_the_evidence(self):
        sides = {"agrees": AGREES, "disagrees": DISAGREES, "open": OPEN}
        for name, section in self.sections().items():
            (said,) = re.findall(r"^## .*: (.*)$", section, re.MULTILINE)
            rows = re.findall(r"\| (agrees|disagrees|open) \|$", section, re.MULTILINE)
            assert said in VERDICTS
            assert said == verdict([sides[row] for row in rows]), name
            assert rows or "Not measured: " in section

    def test_every_number_has_a_unit_and_an_interval(self):
        for section in self.sections().values():
            rows = [line for line in section.splitlines() if line.endswith(" |")][1:]
            for row in rows:
                what, value, interval, unit, over, *_ = row.strip("| ").split(" | ")
                assert what
                assert value
                assert " to " in interval
                assert unit
                assert re.match(r"\d+ \w+", over)
