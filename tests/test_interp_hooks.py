"""Hooks that come out again, and the parts of a block."""

import pytest
import torch
from tiny_models import tiny
from torch import nn

from interp import hooks
from interp.anatomy import Anatomy


class Keyword(nn.Module):
    """Takes its states by name and gives them with something else."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden_states + 1, None


def test_hooks_see_the_states_however_they_are_passed():
    seen = []
    part = Keyword()
    with hooks.on_input(part, seen.append), hooks.on_output(part, seen.append):
        part(torch.zeros(2))
        part(hidden_states=torch.ones(2))
    assert [each.tolist() for each in seen] == [[0, 0], [1, 1], [1, 1], [2, 2]]


@pytest.mark.parametrize("place", [hooks.on_input, hooks.on_output])
def test_a_hook_comes_out_when_the_body_raises(place, untouched):
    model, inputs = tiny("llama")
    block = model.model.layers[0]

    def fail(stream):
        raise RuntimeError("on purpose")

    on_purpose = pytest.raises(RuntimeError, match="on purpose")
    with untouched(model), on_purpose, place(block, fail):
        model(**inputs)


@pytest.mark.parametrize(
    ("name", "sites", "parts"),
    [
        ("llama", ("self",), ["model.layers.0", "model.layers.1"]),
        ("gpt2", ("self",), ["transformer.h.0", "transformer.h.1"]),
        (
            "whisper",
            ("self", "cross"),
            ["model.decoder.layers.0", "model.decoder.layers.1"],
        ),
        ("t5", ("encoder",), ["encoder.block.0", "encoder.block.1"]),
    ],
)
def test_blocks_are_the_members_of_the_stack_once_each(name, sites, parts):
    model = tiny(name)[0]
    found = hooks.blocks(model, Anatomy.of(model), *sites)
    assert found == [model.get_submodule(part) for part in parts]


def test_the_halves_of_a_block_end_where_it_adds_them():
    gemma = tiny("gemma2")[0].model.layers[0]
    attention, mlp = hooks.halves(gemma, [gemma.self_attn])
    assert attention == [gemma.post_attention_layernorm]
    assert mlp is gemma.post_feedforward_layernorm
    llama = tiny("llama")[0].model.layers[0]
    assert hooks.halves(llama, [llama.self_attn]) == ([llama.self_attn], llama.mlp)
    t5 = tiny("t5")[0].encoder.block[0]
    assert hooks.halves(t5, [])[1] is None
