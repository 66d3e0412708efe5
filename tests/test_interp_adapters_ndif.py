"""Traces of models that run on a server: what is sent, and what comes of it.

There is no server here. Its part is played by nnsight's own code on the bytes of the
request, with interp out of reach: they are all that it gets.
"""

import io
import json
import sys

import pytest
import torch
import xarray as xr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.capture import Capture
from interp.errors import InputError, InterpError, UnsupportedModelError
from interp.interventions.ablation import AblateHeads
from interp.kernels.definitions import Pattern

nnsight = pytest.importorskip("nnsight")
remote = pytest.importorskip("nnsight.intervention.backends.remote")

FAMILIES = ["llama", "gemma3", "gemma2", "gpt_oss", "whisper", "t5"]
IDS = torch.tensor([[3, 9, 50, 9, 33, 70, 3, 9, 41, 50]])


def wrapped(name, place="meta"):
    module = tiny(name)[0]
    wrapper = nnsight.TransformersModel(
        module, task="text-generation", tokenizer=tiny_tokenizer()
    )
    module.to(place)
    wrapper._remoteable_model_key = lambda: json.dumps({"repo_id": f"tiny/{name}"})
    return wrapper


class Server:
    """Runs the bytes of a request on a model that it holds."""

    def __init__(self, wrapper):
        self.wrapper, self.requests = wrapper, []

    def answer(self, backend, request, tracer):
        blob = backend._serialize(tracer)
        self.requests.append((request, blob))
        hidden = {name: sys.modules.pop(name) for name in _ours()}
        try:
            objects = self.wrapper._remoteable_persistent_objects()
            ready = type(request).deserialize(blob, objects, request.compress)
            ready.execute(ready.info.code)
        finally:
            sys.modules.update(hidden)
        buffer = io.BytesIO()
        torch.save({"found": ready.info.frame.f_locals["found"]}, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def _ours():
    return [n for n in sys.modules if n == "interp" or n.startswith("interp.")]


@pytest.fixture
def served(monkeypatch):
    """A model without weights, whose requests reach one that has them."""

    def make(name, attention="eager"):
        there = wrapped(name, "cpu")
        if name != "gptj":
            there._module.set_attn_implementation(attention)
        server = Server(there)
        monkeypatch.setattr(
            remote.RemoteBackend,
            "request",
            lambda backend, request, tracer: server.answer(backend, request, tracer),
        )
        return wrapped(name), server

    monkeypatch.setattr(remote.CONFIG.API, "COMPRESS", False)
    monkeypatch.setattr(remote.CONFIG.API, "HOST", "https://server.invalid")
    return make


def same(ours: xr.DataTree, theirs: xr.DataTree) -> None:
    """Statistics equal but for the rounding of two orders of summation."""
    sites = set(theirs.children) & {"self", "cross", "encoder"}
    assert set(ours.children) == sites
    for site in sites:
        assert set(ours[site].data_vars) == set(theirs[site].data_vars)
        for name in theirs[site].data_vars:
            a, b = (torch.from_numpy(t[site][name].values) for t in (ours, theirs))
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_server_gives_the_statistics_of_the_tap(name, served):
    wrapper, server = served(name)
    module, inputs = tiny(name)
    trace = interp.trace(wrapper, inputs, remote=True)
    same(trace, interp.trace(module, inputs, tokenizer=tiny_tokenizer()))
    [(request, blob)] = server.requests
    assert request.model_key.endswith(f'{{"repo_id": "tiny/{name}"}}')
    assert trace.attrs["model_hash"] == request.model_key
    assert b"def attention_statistics" in blob
    assert "on a server" in trace.attrs["door"]
    assert "attention alone" in trace.attrs["skipped"]


@pytest.mark.parametrize(
    ("name", "attention"),
    [("mistral", "sdpa"), ("mistral", "eager"), ("gpt_oss", "eager")],
)
def test_a_padded_batch_is_the_same_whatever_attention_the_server_runs(
    name, attention, served
):
    texts = ["w3 w9 w50 w9 w33 w70 w3 w9", "w9 w8 w7 w6"]
    wrapper, _ = served(name, attention)
    wanted = interp.trace(tiny(name)[0], texts, tokenizer=tiny_tokenizer())
    same(interp.trace(wrapper, texts, remote=True), wanted)


def test_left_padding_is_counted_as_the_tap_counts_it(served):
    ids = tiny("llama")[1]["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    wrapper, _ = served("llama")
    wanted = interp.trace(tiny("llama")[0], inputs, tokenizer=tiny_tokenizer())
    same(interp.trace(wrapper, inputs, remote=True), wanted)


def test_long_texts_go_block_by_block(served, monkeypatch):
    monkeypatch.setattr("interp.adapters.shipped.BLOCK", 4 * 10 * 3)
    wrapper, _ = served("gemma3")
    same(interp.trace(wrapper, IDS, remote=True), interp.trace(tiny("gemma3")[0], IDS))


def test_what_would_be_sent_can_be_run_here(tmp_path):
    wrapper = wrapped("llama", "cpu")
    trace = interp.trace(wrapper, IDS, remote="local", out=tmp_path / "t.zarr")
    same(trace, interp.trace(tiny("llama")[0], IDS))
    again = interp.trace(wrapper, IDS, remote="local", out=tmp_path / "t.zarr")
    same(again, trace)


def test_what_a_server_cannot_do_is_refused(served):
    wrapper, server = served("llama")
    capture = Capture((Pattern(),))
    with pytest.raises(InputError, match=r"pattern was asked for with remote"):
        interp.trace(wrapper, IDS, remote=True, capture=capture)
    with pytest.raises(InputError, match="nnsight model, got LlamaForCausalLM"):
        interp.trace(tiny("llama")[0], IDS, remote=True)
    loaded = interp.load(tiny("llama")[0])
    change = AblateHeads(interp.HeadSet.parse("L0.H1", loaded.anatomy))
    here = wrapped("llama", "cpu")
    with change(here), pytest.raises(InputError, match="in an intervention"):
        interp.trace(here, IDS, remote="local")
    assert not server.requests
    with pytest.raises(UnsupportedModelError, match="'attention_interface_<n>' was"):
        interp.trace(served("gptj")[0], IDS, remote=True)


def test_a_server_that_fails_is_told_with_the_remedy(monkeypatch):
    def fail(*_):
        raise remote.RemoteError("Failed to send request: Missing API key")

    monkeypatch.setattr(remote.RemoteBackend, "request", fail)
    with pytest.raises(InterpError, match=r"Missing API key.*APIKEY.*remote='local'"):
        interp.trace(wrapped("llama"), IDS, remote=True)


def test_a_model_without_a_hub_id_is_refused():
    wrapper = nnsight.NNsight(tiny("llama")[0])
    with pytest.raises(UnsupportedModelError, match="by its hub id"):
        interp.trace(wrapper, IDS, remote=True)
