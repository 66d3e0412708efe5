"""Every detector of attention on three families, against eager maps in float64.

The statistics of a trace come from the tap; beside them `hand_traces` makes the same
from the dense maps of transformers, by their definitions, and the detector reads both.
"""

from functools import cache

import hand_traces as hand
import numpy as np
import pytest
import torch
from test_families import run
from test_probes_detector import made
from tiny_models import N_HEADS, N_KV_HEADS, tiny, tiny_tokenizer
from tolerance import assert_as_precise

import interp
from interp.capture import union
from interp.probes import DETECTORS
from interp.tasks import repeated_random_for

FAMILIES = ("llama", "gemma3", "gpt_oss")
"""Grouped heads, sliding windows, learned sinks."""
READ = [name for name in DETECTORS if not made(name).needs.residual]
"""Detectors of attention alone; `test_probes_sink_tokens` has the others."""


@cache
def task(family):
    model = interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())
    return model, repeated_random_for(model, block=12, copies=4)


@cache
def traced(family):
    model, read = task(family)
    capture = union([read.capture, *(made(name).needs for name in READ)])
    return interp.trace(model, read.ids, capture=capture, attrs=read.attrs)


@cache
def dense(family, dtype, moved=0):
    """What the trace would be, from maps of the whole text."""
    _, read = task(family)
    ids = torch.as_tensor(read.ids).view(1, -1)
    maps = run(family, {"input_ids": ids}, dtype, moved).attentions
    weights = torch.cat(list(maps)).double().numpy()
    windows = traced(family)["self"]["window"].values
    node = hand.site(
        weights,
        tokens=ids[0].tolist(),
        window=np.where(np.isnan(windows), np.inf, windows),
        local_window=4,
        last=32,
        group=N_HEADS // N_KV_HEADS,
    )
    return hand.trace(self=node, **read.attrs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READ)
def test_a_detector_says_of_a_trace_what_it_says_of_eager_maps(name, family):
    detector = made(name)
    ours = detector(traced(family))
    dims = detector.dims

    def of(tree):
        return torch.from_numpy(detector(tree).transpose(*dims).values.astype(float))

    truth = of(dense(family, torch.float64))
    twins = [of(dense(family, torch.float32, moved)).float() for moved in (0, 1, 2)]
    assert truth.isfinite().any() or name == "learned_sinks"
    values = torch.from_numpy(ours.transpose(*dims).values.astype("float32"))
    assert_as_precise(values, truth, *twins, name=name)
