"""Single weights at zero: exactly that, alone, and put back."""

import pytest
import torch
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.errors import InputError, UnsupportedModelError
from interp.interventions import ZeroWeights, sweep
from interp.neurons import down_projection
from interp.tasks.items import Item

ENTRIES = ((0, 3, 7), (1, 5, 2), (1, 6, 40))


def logits(module, inputs):
    with torch.no_grad():
        return module(**inputs).logits


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_the_model_runs_as_if_the_weights_had_been_zero(name, untouched):
    module, inputs = tiny(name)
    with untouched(module), ZeroWeights(ENTRIES)(module):
        edited = logits(module, inputs)

    other, _ = tiny(name)
    anatomy = interp.Anatomy.of(other)
    with torch.no_grad():
        for block, channel, neuron in ENTRIES:
            down_projection(other, anatomy, block).weight[channel, neuron] = 0
    torch.testing.assert_close(edited, logits(other, inputs))
    assert not torch.allclose(edited, logits(module, inputs))


def test_weights_come_back_when_the_body_fails(untouched):
    module, _ = tiny("llama")
    failing = pytest.raises(RuntimeError, match="mine")
    with untouched(module), failing, ZeroWeights(ENTRIES)(module):
        raise RuntimeError("mine")


def test_weights_come_back_when_another_is_refused(untouched):
    module, _ = tiny("llama")
    wrong = ZeroWeights((*ENTRIES, (0, 99, 0)))
    refused = pytest.raises(InputError, match="channel 99")
    with untouched(module), refused, wrong(module):
        pass


def test_nested_blocks_add_up_and_come_back_one_by_one(untouched):
    module, _ = tiny("llama")
    matrix = down_projection(module, interp.Anatomy.of(module), 1)
    own = matrix.weight.detach().clone()
    with untouched(module), ZeroWeights(ENTRIES[1:2])(module):
        with ZeroWeights(ENTRIES[1:])(module):
            assert (matrix.weight == 0).nonzero().tolist() == [[5, 2], [6, 40]]
        assert (matrix.weight == 0).nonzero().tolist() == [[5, 2]]
        assert matrix.weight[6, 40] == own[6, 40]


def test_parameters_keep_whether_they_want_gradients():
    module, _ = tiny("llama")
    matrix = down_projection(module, interp.Anatomy.of(module), 0)
    module.requires_grad_(False)
    with ZeroWeights(ENTRIES)(module):
        assert not matrix.weight.requires_grad


def test_runs_beside_each_other_do_not_see_each_others_zeros():
    module, inputs = tiny("llama")
    model = interp.load(module, tokenizer=tiny_tokenizer())
    ids = tuple(inputs["input_ids"][0].tolist())
    items = [Item(name, ids, (1, len(ids))) for name in "abc"]
    runs = {str(entry): ZeroWeights((entry,)) for entry in ENTRIES}
    both = sweep(model, runs, items, n_workers=2)["nll"]
    one = sweep(model, runs, items, n_workers=1, share=False)["nll"]

    assert both.values == pytest.approx(one.values, rel=1e-5)
    assert (both != both.sel(intervention="none")).sum() == len(ENTRIES) * len(items)


def test_a_run_begins_at_the_first_block_that_is_changed():
    anatomy = interp.Anatomy.of(tiny("llama")[0])

    assert ZeroWeights(ENTRIES[1:]).first_block(anatomy) == 1
    assert ZeroWeights(ENTRIES).first_block(anatomy) == 0


@pytest.mark.parametrize("entries", [(), (ENTRIES[0], ENTRIES[0])])
def test_none_and_one_named_twice_are_refused(entries):
    with pytest.raises(InputError, match="none twice"):
        ZeroWeights(entries)


def test_experts_are_refused_and_the_model_is_left_alone(untouched):
    module, _ = tiny("gpt_oss")
    refused = pytest.raises(UnsupportedModelError, match="router")
    with untouched(module), refused, ZeroWeights(ENTRIES)(module):
        pass
