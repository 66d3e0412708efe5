import pytest
import torch
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.doctor import examine
from interp.errors import UnsupportedModelError
from interp.kernels import accumulators

INTERFACE = "attention interface"
LENS = "TransformerLens, bridged"


def examined(family):
    module, inputs = tiny(family)
    model = interp.load(module, tokenizer=tiny_tokenizer())
    one = {name: value[:1] for name, value in inputs.items()}
    return model, examine(model, one, max_tokens=None)


@pytest.mark.parametrize(
    "family", ["llama", "gemma3", "gpt_oss", "whisper", "t5", "bert"]
)
def test_all_doors_into_a_family_agree(family, untouched):
    module, inputs = tiny(family)
    one = {name: value[:1] for name, value in inputs.items()}
    model = interp.load(module, tokenizer=tiny_tokenizer())
    with untouched(module):
        found = examine(model, one, max_tokens=None)
    doors = found.doors.set_index("door")

    assert found.agrees
    assert found.truth == "the model's eager attention in float64"
    for name in ("eager maps", INTERFACE, "nnsight trace"):
        assert doors.loc[name, "works"], doors.loc[name, "says"]
        assert doors.loc[name, "error"] <= doors.loc[name, "allowed"]
    if family in ("llama", "gemma3", "gpt_oss"):
        assert doors.loc[LENS, "works"], doors.loc[LENS, "says"]
    if family == "whisper":
        assert "does not take" in doors.loc[LENS, "says"]
    assert len(found.layers) == len(model.anatomy.sites)


def test_a_family_outside_the_interface_is_reached_through_torchs_functions():
    _, found = examined("gptj")
    doors = found.doors.set_index("door")

    assert found.agrees
    assert set(found.layers["door"]) == {"torch functions"}
    assert not doors.loc["nnsight trace", "works"]
    assert "looked for" in doors.loc["nnsight trace", "says"]
    [ours] = [name for name in doors.index if name.startswith("torch functions")]
    assert doors.loc[ours, "agrees"]


def test_a_wrong_statistic_is_found_and_named(monkeypatch):
    own = accumulators.Entropy.finish

    def wrong(self, rows):
        return {name: 1.01 * values for name, values in own(self, rows).items()}

    monkeypatch.setattr(accumulators.Entropy, "finish", wrong)
    _, found = examined("llama")
    row = found.doors.set_index("door").loc[INTERFACE]

    assert not found.agrees
    assert not row["agrees"]
    assert row["error"] > row["allowed"]


def test_a_model_without_attention_is_refused():
    model = interp.load(tiny("mamba")[0])
    with pytest.raises(UnsupportedModelError):
        examine(model, torch.tensor([[3, 4, 5]]))
