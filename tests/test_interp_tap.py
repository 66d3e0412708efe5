"""The tap: what it sees, the traps on the way there, and that it leaves nothing."""

import pytest
import torch
from tiny_models import FAMILIES, UNREACHABLE, WITHOUT_ATTENTION, tiny
from transformers import AttentionInterface, AttentionMaskInterface

import interp
from interp.anatomy import Anatomy
from interp.capture import Capture
from interp.editing import AttentionEdit, editing, in_force
from interp.errors import UnsupportedModelError
from interp.kernels import reference
from interp.kernels.definitions import (
    Distance,
    Entropy,
    FirstMass,
    LocalMass,
    Lse,
    MaxMass,
)
from interp.kernels.edits import Edit
from interp.tap import tap


def visits_of(model, **inputs):
    seen = []
    with torch.no_grad(), tap(model, seen.append):
        model(**inputs)
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_the_same_after_a_trace(name, untouched):
    model, inputs = tiny(name)
    with untouched(model):
        interp.trace(model, inputs)


def test_the_model_is_the_same_after_a_visit_that_raised(untouched):
    model, inputs = tiny("llama")

    def fail(visit):
        raise RuntimeError("on purpose")

    on_purpose = pytest.raises(RuntimeError, match="on purpose")
    with untouched(model), on_purpose, tap(model, fail):
        model(**inputs)


def test_the_model_is_the_same_after_a_trace_that_was_interrupted(untouched):
    model, inputs = tiny("gemma3")

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with untouched(model), pytest.raises(KeyboardInterrupt):
        interp.trace(model, inputs, progress=stop)


def test_a_model_in_training_mode_is_traced_without_dropout_and_put_back():
    model, inputs = tiny("gpt2")
    loaded = interp.load(model)
    first = interp.trace(loaded, inputs)
    model.train()
    model.transformer.h[0].mlp.eval()
    again = interp.trace(loaded, inputs)
    assert model.training
    assert not model.transformer.h[0].mlp.training
    assert again["self"]["entropy"].equals(first["self"]["entropy"])


@pytest.mark.parametrize("name", [*UNREACHABLE, *WITHOUT_ATTENTION])
def test_a_model_that_cannot_be_reached_is_refused_with_the_reason(name):
    model, inputs = tiny(name)
    with pytest.raises(UnsupportedModelError, match="attention"):
        interp.trace(model, inputs)


def test_both_registries_hold_the_private_name_and_give_it_up():
    model, inputs = tiny("mistral")
    names = []

    def look(visit):
        name = model.config._attn_implementation
        names.append(name)
        assert name in AttentionInterface._global_mapping
        assert name in AttentionMaskInterface._global_mapping

    with torch.no_grad(), tap(model, look):
        model(**inputs)
    [name] = set(names)
    assert "flash" not in name
    assert "/" not in name
    assert "|" not in name
    assert name not in AttentionInterface._global_mapping
    assert name not in AttentionMaskInterface._global_mapping


def test_taps_may_be_nested():
    model, inputs = tiny("llama")
    inner, outer = [], []
    with torch.no_grad(), tap(model, outer.append):
        with tap(model, inner.append):
            model(**inputs)
        model(**inputs)
    assert len(inner) == len(outer) == 2


@pytest.mark.parametrize(("name", "scale"), [("whisper", 1.0), ("t5", 1.0)])
def test_the_scale_is_the_one_that_the_model_passes(name, scale):
    model, inputs = tiny(name)
    assert {visit.call.score.scale for visit in visits_of(model, **inputs)} == {scale}


def test_the_scale_may_differ_from_layer_to_layer():
    model, inputs = tiny("gpt2")
    config = type(model.config).from_dict(
        {**model.config.to_dict(), "scale_attn_by_inverse_layer_idx": True}
    )
    visits = visits_of(type(model)(config).eval(), **inputs)
    first, second = (visit.call.score.scale for visit in visits)
    assert first == pytest.approx(8**-0.5)
    assert second == pytest.approx(first / 2)


def test_gemma_s_scale_is_not_that_of_its_head_width():
    model, inputs = tiny("gemma2")
    scales = {visit.call.score.scale for visit in visits_of(model, **inputs)}
    assert scales == {model.config.query_pre_attn_scalar**-0.5} != {8**-0.5}


def test_softcap_and_learned_sinks_reach_the_score_rule():
    gemma, inputs = tiny("gemma2")
    assert all(v.call.score.softcap for v in visits_of(gemma, **inputs))
    oss, inputs = tiny("gpt_oss")
    assert all(v.call.score.sink_logits is not None for v in visits_of(oss, **inputs))


def test_no_mask_of_query_times_key_is_ever_made():
    model, inputs = tiny("gemma3")
    for visit in visits_of(model, **inputs):
        assert visit.call.mask.dense is None
        assert visit.call.mask.function is None


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_the_layers_of_a_forward_share_their_rules(name):
    model, inputs = tiny(name)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, :5] = 0
    real = torch.ones(2, 12, dtype=torch.bool)  # of bart's decoder
    real[1, 7:] = False
    rules = {}

    def look(visit):
        rules.setdefault(visit.site.name, []).append(visit.call.mask)

    with torch.no_grad(), tap(model, look, padding=real):
        model(**inputs, attention_mask=mask)
    for site, (first, second) in rules.items():
        assert first is second, site
    own = rules["self" if name == "llama" else "encoder"][0]
    assert torch.equal(own.query_padding, mask.bool())
    if name == "bart":
        assert torch.equal(rules["cross"][0].query_padding, real)


@pytest.mark.parametrize("name", ["whisper", "vit", "t5", "bart"])
def test_layers_are_named_by_module_not_by_layer_idx(name):
    model, inputs = tiny(name)
    for part in model.modules():
        if hasattr(part, "layer_idx") and name != "t5":  # its bias asks for it
            part.layer_idx = None
    options = {} if name == "vit" else {"use_cache": False}
    visits = visits_of(model, **inputs, **options)
    names = [(visit.site.name, visit.site.layer) for visit in visits]
    sites = ["encoder"] if name == "vit" else ["cross", "encoder", "self"]
    assert sorted(names) == [(site, layer) for site in sites for layer in (0, 1)]


def test_a_mask_given_as_a_tensor_is_honoured():
    model, inputs = tiny("llama")
    ids = inputs["input_ids"]
    n = ids.shape[1]
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[:, 3] = False
    mask[3, 3] = True
    for given in (mask, torch.where(mask, 0.0, torch.finfo(torch.float32).min)):
        for visit in visits_of(model, input_ids=ids, attention_mask=given[None, None]):
            weights, _ = reference.weights(visit.call)
            assert (weights[:, :, 4:, 3] == 0).all()
            assert (weights[:, :, 3, 3] > 0).all()


def test_positions_are_absolute_in_a_sliding_cache():
    model, inputs = tiny("mistral")
    seen = []

    def look(visit):
        mask = visit.call.mask
        if visit.site.layer == 0 and mask.query_length == 1:
            newest = mask.key_offset + mask.key_length - 1
            seen.append((mask.query_offset, newest, mask.key_length))
            key = visit.arrays["max_key"]
            assert ((key >= 0) & (key < mask.key_length)).all()

    with torch.no_grad(), tap(model, look, wanted=lambda site: (MaxMass(),)):
        under = model.generate(
            inputs["input_ids"], max_new_tokens=6, do_sample=False, eos_token_id=None
        )
    plain = model.generate(
        inputs["input_ids"], max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert torch.equal(under, plain)
    assert [query for query, _, _ in seen] == [12, 13, 14, 15, 16]
    assert all(query == newest for query, newest, _ in seen)
    assert all(length <= 5 for _, _, length in seen)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_oss", "llama4"])
def test_decoding_gives_the_rows_of_the_whole_text(name):
    model, inputs = tiny(name)
    rows: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def look(visit):
        mask = visit.call.mask
        if mask.query_length == 1:
            arrays = {key: values[:, :, 0] for key, values in visit.arrays.items()}
            arrays["max_key"] = arrays["max_key"] + mask.key_offset
            rows[visit.site.layer, mask.query_offset] = arrays

    wanted = (Lse(), Entropy(), Distance(), LocalMass(3), FirstMass(), MaxMass())
    with torch.no_grad(), tap(model, look, wanted=lambda site: wanted):
        ids = model.generate(
            inputs["input_ids"], max_new_tokens=8, do_sample=False, eos_token_id=None
        )
    node = interp.trace(model, {"input_ids": ids}, capture=Capture(wanted, None))[
        "self"
    ]
    assert {query for _, query in rows} == set(range(12, 19))
    for (layer, query), arrays in rows.items():
        for array, found in arrays.items():
            whole = torch.from_numpy(node[array].sel(layer=layer, query=query).values)
            torch.testing.assert_close(
                found, whole.to(found.dtype), rtol=1e-3, atol=1e-4
            )


class DropFirst(Edit, AttentionEdit):
    """In layer 1 nobody but the first query sees the first key."""

    def weights(self, site, call):
        return [self] if site.layer == 1 else []

    def change_logits(self, logits, block):
        hidden = (block.key == 0) & (block.query > 0)[:, None]
        logits.masked_fill_(hidden, -torch.inf)


def test_an_edit_changes_the_output_and_the_statistics_together():
    model, inputs = tiny("llama")
    seen = []
    with torch.no_grad():
        before = model(**inputs).logits
        with (
            editing(model, DropFirst()),
            tap(model, seen.append, wanted=lambda site: (FirstMass(),)),
        ):
            after = model(**inputs).logits
    assert (seen[0].arrays["first_mass"][..., 1:] > 0).all()
    assert (seen[1].arrays["first_mass"][..., 1:] == 0).all()
    assert not torch.allclose(before, after)
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-4)
    assert in_force(model) == ()


def test_t5_says_that_its_memory_is_not_linear():
    capability = Anatomy.of(tiny("t5")[0]).capability("linear_memory")
    assert not capability.available
    assert "bias" in capability.reason
