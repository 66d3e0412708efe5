"""MLPs on a part of the text at a time: the same numbers, and nothing left behind."""

import pytest
import torch
from tiny_models import tiny
from tolerance import assert_as_precise

from interp.anatomy import Anatomy
from interp.piecewise import piecewise


def logits(module, ids, dtype=torch.float32):
    with torch.no_grad():
        return module.to(dtype)(ids).logits


def widest(module, name):
    """Tokens of the widest call of a part, told by a hook."""
    seen = []
    part = module.get_submodule(name)
    handle = part.register_forward_hook(lambda _m, given, _o: seen.append(given[0]))
    return seen, handle


@pytest.mark.parametrize(
    ("family", "down"),
    [
        ("llama", "model.layers.0.mlp.down_proj"),
        ("gemma2", "model.layers.0.mlp.down_proj"),
        ("gpt2", "transformer.h.0.mlp.c_proj"),
        ("gpt_neox", "gpt_neox.layers.0.mlp.dense_4h_to_h"),
    ],
)
def test_pieces_give_what_the_whole_gives(family, down, untouched):
    module, inputs = tiny(family)
    ids = inputs["input_ids"]
    whole = logits(module, ids)
    anatomy = Anatomy.of(module)
    seen, handle = widest(module, down)
    handle.remove()
    with untouched(module):
        seen, handle = widest(module, down)
        with piecewise(module, anatomy, 5):
            pieces = logits(module, ids)
        handle.remove()
    assert [part.shape[1] for part in seen] == [5, 5, 2]
    truth = logits(tiny(family)[0], ids, torch.float64)
    assert_as_precise(pieces, truth, whole)


def test_experts_are_left_as_they_are(untouched):
    module, inputs = tiny("gpt_oss")
    whole = logits(module, inputs["input_ids"])
    with untouched(module), piecewise(module, Anatomy.of(module), 5):
        pieces = logits(module, inputs["input_ids"])
    assert torch.equal(pieces, whole)


def test_an_error_inside_leaves_the_model_as_it_was(untouched):
    module, _ = tiny("llama")
    with (
        untouched(module),
        pytest.raises(KeyError),
        piecewise(module, Anatomy.of(module), 5),
    ):
        raise KeyError
