"""A rhythm of traces made by hand, with all that the command adds."""

import json

import hand_traces as hand
import numpy as np
import xarray as xr
from hand_atlas import HOSTILE

from interp.probes.coupling import Coupling
from interp.probes.credit_assignment import credit
from interp.probes.preplan import rhythm
from interp.probes.reach import Reach
from interp.probes.receivers import Receivers
from interp.probes.rhythm import Rhythm

HARM = HOSTILE[27] + HOSTILE[5]
"""A name that wants out of its tag."""
OPTIONS = Rhythm(
    reach=Reach(share=0.5),
    clip=3,
    horizons=((2, None), (0, None)),
    receivers=Receivers(near=2, least_queries=1),
    coupling=Coupling(draws=20),
)


def hand_rhythm(n_chains: int = 2, name: str = "prompt", word: str = "t") -> xr.Dataset:
    """Chains of random weights; the second is shorter than the first."""
    traces = []
    for number in range(n_chains):
        n_tokens = 24 - 4 * (number == 1)
        words = [f"{word}{n % 7}" for n in range(n_tokens)]
        weights = hand.random_weights(number, n_tokens=n_tokens)
        node = hand.site(weights, clip=3, tokens=words)
        expected = xr.Dataset(
            {"entropy": ("query", np.linspace(0, 3, n_tokens - 4))},
            {"query": np.arange(4, n_tokens)},
        )
        trace = hand.trace(self=node, predictions=expected, prompt_tokens=4)
        trace.attrs["text_name"] = f"{name} {number}"
        traces.append(trace)
    found = rhythm(traces, options=OPTIONS)
    more = {
        f"credit_{kind}": credit(found, kind, horizon="2-end")
        for kind in ("local", "global", "coupled")
    }
    more["prompt_text"] = xr.DataArray([f"asked {word}"] * n_chains, dims="chain")
    return found.assign(more).assign_attrs(
        model="smollm2-135m",
        model_hash="9f3c1be2" * 8,
        versions=json.dumps({"torch": "2.13.0"}),
        command="interp rhythm smollm2-135m --prompt why",
        skipped=json.dumps([{"what": "horizon 10-50", "why": "too <i>short</i>"}]),
    )
