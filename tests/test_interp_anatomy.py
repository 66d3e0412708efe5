"""The anatomy of tiny models of every family, told without running them."""

import copy
from typing import Any

import pytest
import tiny_models
import torch
import transformers as hf
from tiny_models import (
    D_HEAD,
    D_MODEL,
    ENCODER_DECODERS,
    FAMILIES,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    UNREACHABLE,
    VOCAB,
    WINDOW,
    WITHOUT_ATTENTION,
    tiny,
)

from interp.anatomy import Anatomy
from interp.errors import UnsupportedModelError

GROUPED = {"llama", "mistral", "gemma2", "gemma3", "qwen3", "gpt_oss", "phi3", "llama4"}
BIDIRECTIONAL = {"bert", "vit", "modernbert"}


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_the_modules_that_call_the_attention_function(
    family, monkeypatch: pytest.MonkeyPatch
):
    module, inputs = tiny(family)
    names = {id(part): name for name, part in module.named_modules()}
    called: list[tuple] = []
    inner = hf.AttentionInterface()["sdpa"]

    def record(part, query, key, value, *args, **kwargs):
        widths = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
        called.append((names[id(part)], *widths))
        kwargs.pop("softcap", None)
        return inner(part, query, key, value, *args, **kwargs)

    monkeypatch.setitem(hf.AttentionInterface._global_mapping, "recorder", record)
    module.set_attn_implementation("recorder")
    with torch.no_grad():
        module(**inputs)
    told = [
        (site.module_name, site.n_heads, site.n_kv_heads, site.d_head, site.d_value)
        for site in Anatomy.of(module).sites
    ]
    assert sorted(called) == sorted(told)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_and_site_names_follow_the_config(family):
    anatomy = Anatomy.of(tiny(family)[0])
    n_layers = 4 if family == "gemma3" else N_LAYERS
    assert anatomy.n_layers == n_layers
    assert anatomy.d_model == D_MODEL
    assert anatomy.vocab_size == (None if family == "vit" else VOCAB)
    assert anatomy.max_positions == (None if family in {"vit", "t5"} else 64)
    if family in ENCODER_DECODERS:
        assert set(anatomy.site_names) == {"self", "cross", "encoder"}
    else:
        wanted = "encoder" if family in BIDIRECTIONAL else "self"
        assert anatomy.site_names == (wanted,)
    for name in anatomy.site_names:
        modules = anatomy.at(name)
        assert [site.layer for site in modules] == list(range(n_layers))
        assert {site.n_heads for site in modules} == {N_HEADS}
        n_kv_heads = N_KV_HEADS if family in GROUPED else N_HEADS
        assert {site.n_kv_heads for site in modules} == {n_kv_heads}
    anatomy.require_attention()


def test_windows_softcaps_and_sinks_are_told_layer_by_layer():
    def told(family: str, attribute: str) -> list:
        return [getattr(site, attribute) for site in Anatomy.of(tiny(family)[0]).sites]

    assert told("mistral", "window") == [WINDOW, WINDOW]
    assert told("gemma2", "window") == [WINDOW, None]
    assert told("gemma3", "window") == [WINDOW, WINDOW, WINDOW, None]
    assert told("gpt_oss", "window") == [WINDOW, None]
    assert told("llama", "window") == [None, None]
    assert told("llama4", "window") == [None, None]
    assert told("llama4", "chunk") == [WINDOW, None]
    # ModernBERT looks `local_attention / 2` tokens to either side, itself included.
    assert told("modernbert", "window") == [None, WINDOW + 1]
    assert told("gemma2", "softcap") == [50.0, 50.0]
    assert told("gemma3", "softcap") == [None] * 4
    assert told("gpt_oss", "learned_sinks") == [True, True]
    assert told("llama", "learned_sinks") == [False, False]


def test_query_and_value_widths_of_latent_attention_differ():
    for site in Anatomy.of(tiny("deepseek_v3")[0]).sites:
        assert (site.d_head, site.d_value) == (12, 6)
    for site in Anatomy.of(tiny("llama")[0]).sites:
        assert (site.d_head, site.d_value) == (D_HEAD, D_HEAD)


def test_decoder_layers_are_counted_where_the_encoder_has_another_number():
    config: Any = tiny("whisper")[0].config
    config.encoder_layers, config.decoder_layers = 3, 1
    anatomy = Anatomy.of(hf.WhisperForConditionalGeneration(config))
    assert anatomy.n_layers == 1
    assert len(anatomy.at("encoder")) == 3
    assert len(anatomy.at("self")) == len(anatomy.at("cross")) == 1


def test_bert_as_a_decoder_has_causal_and_cross_sites():
    config: Any = tiny("bert")[0].config
    config.is_decoder = config.add_cross_attention = True
    anatomy = Anatomy.of(hf.BertLMHeadModel(config))
    assert anatomy.site_names == ("self", "cross")


@pytest.mark.parametrize("family", UNREACHABLE)
def test_attention_over_parts_of_rows_is_refused_with_its_class(family):
    anatomy = Anatomy.of(tiny(family)[0])
    assert anatomy.sites == ()
    assert not anatomy.capability("tap").available
    with pytest.raises(UnsupportedModelError, match="SelfAttention, which neither"):
        anatomy.require_attention()


@pytest.mark.parametrize("family", WITHOUT_ATTENTION)
def test_a_model_without_attention_is_refused(family):
    with pytest.raises(UnsupportedModelError, match="has no attention"):
        Anatomy.of(tiny(family)[0]).require_attention()


def test_capabilities_give_reasons():
    t5 = Anatomy.of(tiny("t5")[0])
    assert not t5.capability("linear_memory").available
    assert "query x key" in t5.capability("linear_memory").reason
    assert Anatomy.of(tiny("llama")[0]).capability("linear_memory").available
    assert Anatomy.of(tiny("llama")[0]).capability("generation").available
    assert not Anatomy.of(tiny("vit")[0]).capability("generation").available


def test_a_site_that_the_model_lacks_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"'cross'.*has self\."):
        Anatomy.of(tiny("llama")[0]).at("cross")


def test_a_module_without_config_is_refused():
    with pytest.raises(UnsupportedModelError, match="Linear, which has no config"):
        Anatomy.of(torch.nn.Linear(2, 2))


def test_reading_an_anatomy_changes_nothing():
    module, _ = tiny("whisper")
    before = copy.deepcopy(module.config.to_dict()), module.config._attn_implementation
    Anatomy.of(module)
    assert (module.config.to_dict(), module.config._attn_implementation) == before
    assert Anatomy.of(module) == Anatomy.of(module)


@pytest.mark.parametrize("family", [*FAMILIES, *UNREACHABLE, *WITHOUT_ATTENTION])
def test_tiny_models_are_the_same_every_time(family):
    first, inputs = tiny(family)
    second, again = tiny(family)
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


def test_tiny_words_are_their_own_ids():
    tokenizer = tiny_models.tiny_tokenizer()
    assert tokenizer("w3 w95").input_ids == [3, 95]
