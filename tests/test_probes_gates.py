"""Training of gates: by hand, interrupted, refused."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers as hf
import xarray as xr
from dense_streams import dense_distance
from tiny_models import tiny, tiny_tokenizer
from tiny_tokenizers import merging_tokenizer
from tolerance import assert_as_precise

import interp
from interp.errors import InputError, StorageError, UnsupportedModelError
from interp.heads import HeadSet
from interp.interventions.local import LocalHeads
from interp.probes.atlas import atlas
from interp.probes.gate_training import GateTraining, rate_factor
from interp.probes.gates import Gates
from interp.probes.registry import EXPERIMENTS, resolve
from interp.probes.two_streams import TwoStreams
from interp.probes.vault import Vault

STEPS = 5
SHORT = Gates(
    lengths=(20, 30), passkeys=2, words=2, first=2, recent=8, steps=STEPS, rate=0.2
)


def model(name="llama", **options):
    """A tiny model that reads text."""
    kinds = {
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig),
        "mistral": (hf.MistralForCausalLM, partial(hf.MistralConfig, sliding_window=8)),
        "gemma3": (
            hf.Gemma3ForCausalLM,
            partial(
                hf.Gemma3TextConfig,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
        ),
    }
    build, config = kinds[name]
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 700,
        "max_position_embeddings": 300,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(config(**(sizes | options))).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return interp.load(module, tokenizer=merging_tokenizer())


def trained(gates=SHORT, own=None, **options):
    return gates.run(own or model(), **options)


def hand(own, texts, dtype):
    """Every step of AdamW on the dense loss, with its formulas written out."""
    gates = torch.ones(2, 2, dtype=dtype)
    mean, square = torch.zeros_like(gates), torch.zeros_like(gates)
    path, losses = [], []
    for t, (ids, labelled) in enumerate(texts, 1):
        gates = gates.clamp(0, 1).requires_grad_()
        distance = dense_distance(
            own.module, gates, list(ids), torch.tensor(labelled), first=2, recent=8
        )
        loss = distance + 0.05 * gates.abs().mean()
        (slope,) = torch.autograd.grad(loss, gates)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        # T = 5: up in one step and down in one.
        rate = 0.2 * min(1, max(t, 0.1), max(STEPS + 1 - t, 0.1))
        step = mean / (1 - 0.9**t)
        gates = gates.detach() - rate * step / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
        path.append(gates.clamp(0, 1))
        losses.append(distance.detach())
    return torch.stack(path), torch.stack(losses)


def test_training_is_adam_on_the_dense_loss():
    own = model()
    own.module.double()
    training = GateTraining(
        TwoStreams(own, 2, 8),
        Vault("A lamp. A sea.", 2, 2, "passkey"),
        (20, 30),
        STEPS,
        0.2,
        0.05,
    )
    texts = [training.text(0, step) for step in range(STEPS)]
    path, losses = hand(own, texts, torch.float64)
    twin, twin_losses = hand(own, texts, torch.float32)

    log = training.log(0, None, lambda step: None)

    ours = torch.tensor([entry["path"] for entry in log], dtype=torch.float32)
    assert_as_precise(ours, path, twin, name="gates")
    loss = torch.tensor([entry["loss"] for entry in log], dtype=torch.float32)
    assert_as_precise(loss, losses, twin_losses.float(), name="loss")
    assert losses[0] == 0 < losses[1]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (5, [1, 1, 1, 1, 1]),
        (10, [1 / 2, 1, 1, 1, 1, 1, 1, 1, 1, 1 / 2]),
        (100, {0: 0.1, 1: 0.1, 4: 1 / 4, 19: 1, 80: 1, 90: 1 / 2, 98: 0.1, 99: 0.1}),
    ],
)
def test_the_rate_rises_and_falls_by_a_fifth_of_the_steps(steps, wanted):
    wanted = wanted if isinstance(wanted, dict) else dict(enumerate(wanted))
    assert {step: rate_factor(step, steps) for step in wanted} == pytest.approx(wanted)


def test_the_result_has_heads_groups_and_every_step():
    found = trained()

    assert found["gates"].dims == ("layer", "head")
    assert found["gates"].shape == (2, 4)
    assert found["gates_kv"].shape == (2, 2)
    by_head = found["gates_kv"].isel(kv_group=found["gates"]["kv_head"])
    assert np.array_equal(found["gates"], by_head)
    assert np.array_equal(found["gates_path"][0, -1], found["gates_kv"])
    assert ((found["gates_path"] >= 0) & (found["gates_path"] <= 1)).all()
    assert found["gates_loss"].shape == found["gates_penalty"].shape == (1, STEPS)
    assert found["gates_penalty"][0, 0] == np.float32(0.05)
    assert found["gates_loss"][0, 0] == 0 < found["gates_loss"][0, 1]
    assert found["gates"].attrs["haystack"] == "shipped"
    assert "gates_interval" not in found


def test_several_seeds_give_a_mean_and_an_interval():
    found = trained(replace(SHORT, steps=2, seeds=(0, 3)))
    low, high = (found["gates_interval"].sel(bound=b) for b in ("low", "high"))

    assert found["gates_runs"].shape == (2, 2, 4)
    assert np.allclose(found["gates_runs"].mean("gates_run"), found["gates"])
    assert (low <= found["gates"] + 1e-12).all()
    assert (found["gates"] <= high + 1e-12).all()
    alone = trained(replace(SHORT, steps=2, seeds=(3,)))
    assert np.array_equal(alone["gates"], found["gates_runs"].sel(gates_run="seed 3"))


def test_a_run_that_is_interrupted_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, own = trained(), model()

    def stop(_name, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(own=own, folder=tmp_path, progress=stop)
    told, slopes, slope = [], [], TwoStreams.slope
    monkeypatch.setattr(
        TwoStreams, "slope", lambda *each: slopes.append(1) or slope(*each)
    )
    again = trained(own=own, folder=tmp_path, progress=lambda *each: told.append(each))

    xr.testing.assert_identical(again, whole)
    assert len(slopes) == STEPS - 3
    assert told == [("gates", step, STEPS) for step in range(STEPS + 1)]


def test_a_state_of_other_options_is_not_taken(tmp_path):
    trained(folder=tmp_path)
    other = replace(SHORT, penalty=1.0)
    assert trained(other, folder=tmp_path).identical(trained(other))
    for file in tmp_path.iterdir():
        file.write_text("{")
    with pytest.raises(StorageError, match="Delete it"):
        trained(folder=tmp_path)


def test_many_steps_leave_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.probes.gate_training.FILES", 2)
    kept = trained(folder=tmp_path)

    assert len(list(tmp_path.iterdir())) == 2
    xr.testing.assert_identical(kept, trained())


def test_the_model_is_left_as_it_was(untouched):
    own = model()
    with untouched(own.module):
        trained(own=own)

    def fail(_name, done, _total):
        if done == 1:
            raise RuntimeError

    with untouched(own.module), pytest.raises(RuntimeError):
        trained(own=own, progress=fail)


def test_layers_that_see_only_what_is_recent_have_gates_of_0():
    found = trained(own=model("gemma3"))

    assert not found["gates"].sel(layer=0).any()
    assert found["gates"].sel(layer=1).all()
    assert found["gates_penalty"][0, 0] == np.float32(0.05)  # a mean over real gates


def test_an_atlas_takes_gates_with_their_curves():
    heads = atlas(model(), "A lamp and the sea. " * 9, detectors=SHORT)["heads"]

    assert heads["gates"].attrs["interval"] == "none: one training"
    assert heads["gates_loss"].dims == ("gates_run", "gates_step")
    assert EXPERIMENTS["gates"] is Gates
    assert not any(isinstance(probe, Gates) for probe in resolve())


def test_the_papers_training_is_at_hand():
    paper = Gates.paper()

    assert (paper.first, paper.recent, paper.steps, paper.rate) == (
        128,
        256,
        2000,
        0.02,
    )
    assert (paper.passkeys, paper.words, paper.penalty) == (10, 32, 0.05)
    assert (len(paper.lengths), paper.lengths[0], paper.lengths[-1]) == (
        50,
        1000,
        32000,
    )


@pytest.mark.parametrize(
    "options",
    [{"lengths": ()}, {"steps": 0}, {"rate": 0.0}, {"seeds": ()}, {"recent": 0}],
)
def test_a_training_of_nothing_is_refused(options):
    with pytest.raises(InputError, match="Start from Gates"):
        Gates(**options)


def test_a_text_of_which_nothing_is_hidden_is_refused():
    with pytest.raises(InputError, match="Take longer texts, or less recent"):
        trained(replace(SHORT, recent=300))


def test_a_model_that_sees_nothing_but_what_is_recent_is_refused():
    with pytest.raises(InputError, match=r"no layer of .* sees further back"):
        trained(own=model("mistral"))


def test_a_context_without_room_is_refused():
    with pytest.raises(InputError, match="Hide fewer or shorter ones"):
        trained(own=model(max_position_embeddings=40))


@pytest.mark.parametrize("name", ["whisper", "bert", "falcon", "mamba"])
def test_a_model_without_two_streams_is_refused(name):
    own = interp.load(tiny(name)[0], tokenizer=tiny_tokenizer())
    with pytest.raises(UnsupportedModelError):
        trained(own=own)


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="came without one"):
        trained(own=interp.load(tiny("llama")[0]))


def test_a_loss_that_is_no_number_is_refused():
    own = model()
    with torch.no_grad():
        own.module.model.norm.weight.fill_(torch.inf)
    with pytest.raises(UnsupportedModelError, match="Load it in float32"):
        trained(own=own)


def test_gates_of_a_changed_model_are_refused():
    own = model()
    heads = HeadSet.of([(0, 0)], own.anatomy)
    with (
        LocalHeads(heads, recent=3)(own),
        pytest.raises(InputError, match="outside its block"),
    ):
        trained(own=own)
