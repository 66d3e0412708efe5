import numpy as np
import pytest
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.capture import Capture
from interp.errors import InputError
from interp.kernels.definitions import Received
from interp.probes import input_controls
from interp.probes.input_controls import KINDS, sink_controls
from interp.probes.sinks import sink_metric

TEXT = " ".join(f"w{3 + n * n % 90}" for n in range(50))
OPTIONS = {"n_tokens": 12, "n_sequences": 5, "epsilon": 0.1}


def model_of(name, tokenizer=True):
    module, _ = tiny(name)
    return interp.load(module, tokenizer=tiny_tokenizer() if tokenizer else None)


@pytest.fixture(scope="module")
def found():
    return sink_controls(model_of("llama"), TEXT, **OPTIONS)


@pytest.fixture(scope="module")
def inputs():
    """Every batch that was traced, in order."""
    seen, own = [], input_controls.trace
    with pytest.MonkeyPatch.context() as patch:

        def traced(model, rows, **options):
            seen.append(rows)
            return own(model, rows, **options)

        patch.setattr(input_controls, "trace", traced)
        sink_controls(model_of("llama"), TEXT, **OPTIONS)
    return seen


def test_every_kind_is_measured_with_and_without_bos(found):
    assert found["sink_metric"].dims == ("kind", "bos")
    assert found["kind"].values.tolist() == list(KINDS)
    assert found["bos"].values.tolist() == [False, True]
    assert found["sink_metric"].notnull().all()
    assert ((found["sink_metric"] >= 0) & (found["sink_metric"] <= 100)).all()


def test_the_metric_is_the_mean_over_sequences_inside_its_interval(found):
    each = found["sink_metric_sequences"]
    low, high = found["sink_metric_interval"].transpose("bound", ...).values

    np.testing.assert_allclose(found["sink_metric"], each.mean("sequence"))
    assert (low <= found["sink_metric"]).all()
    assert (found["sink_metric"] <= high).all()


def test_the_effect_of_bos_is_the_mean_of_differences(found):
    each = found["sink_metric_sequences"]
    change = (each.sel(bos=True) - each.sel(bos=False)).mean("sequence")

    np.testing.assert_allclose(found["bos_effect"], change)
    assert found["bos_effect_interval"].dims == ("kind", "bound")
    assert found["bos_effect"].attrs["units"] == "percentage points"


def test_fewer_windows_than_asked_are_said(found):
    assert found.attrs["n_windows"] == 4
    counts = found["sink_metric_sequences"].count("sequence").sel(bos=False)
    assert counts.values.tolist() == [4, 5, 5]


def test_inputs_are_what_they_are_called(inputs):
    plain, with_bos = inputs[0::2], inputs[1::2]
    ids = tiny_tokenizer()(TEXT)["input_ids"]
    windows = {tuple(ids[n : n + 12]) for n in range(0, 48, 12)}

    assert set(plain[0]) == windows
    assert all(len(set(row)) > 1 for row in plain[1])
    assert all(len(set(row)) == 1 for row in plain[2])
    assert min(min(row) for row in plain[1] + plain[2]) >= 3  # no special token
    for without, along in zip(plain, with_bos, strict=True):
        assert along == [(1, *row[:-1]) for row in without]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_batches_measure_what_each_sequence_alone_does(name):
    model = model_of(name)
    many = sink_controls(model, TEXT, **OPTIONS, batch=3)
    one = sink_controls(model, TEXT, **OPTIONS, batch=1)
    capture = Capture((Received(),), edges=None, residual=False)
    ids = tiny_tokenizer()(TEXT)["input_ids"][:12]
    alone = sink_metric(interp.trace(model, ids, capture=capture), epsilon=0.1)

    np.testing.assert_array_equal(
        many["sink_metric_sequences"], one["sink_metric_sequences"]
    )
    assert alone.item() in many["sink_metric_sequences"].sel(kind="natural", bos=False)


def test_the_same_seed_draws_the_same_sequences(found):
    again = sink_controls(model_of("llama"), TEXT, **OPTIONS)
    other = sink_controls(model_of("llama"), TEXT, **OPTIONS, seed=1)

    assert again.identical(found)
    assert not other["sink_metric_sequences"].equals(found["sink_metric_sequences"])


def test_without_a_token_that_begins_texts_nothing_is_said_of_it():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    model = interp.load(tiny("llama")[0], tokenizer=tokenizer)
    found = sink_controls(model, {"mine": TEXT}, **OPTIONS)

    assert found["bos"].values.tolist() == [False]
    assert "bos_effect" not in found
    assert found.attrs["bos"] == "none"


def test_progress_counts_all_sequences():
    told = []
    sink_controls(
        model_of("llama"), [TEXT], **OPTIONS, progress=lambda *each: told.append(each)
    )

    assert told[-1] == ("repeated", 28, 28)
    assert [done for _, done, _ in told] == [4, 8, 13, 18, 23, 28]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tokens": 1}, "n_tokens=1"),
        ({"n_sequences": 0}, "n_sequences=0"),
        ({"n_tokens": 60}, "window of 60 tokens"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        sink_controls(model_of("llama"), TEXT, **options)


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="without a tokenizer"):
        sink_controls(model_of("llama", tokenizer=False), TEXT)
