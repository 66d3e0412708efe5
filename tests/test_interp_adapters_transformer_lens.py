"""Models that TransformerLens has bridged: traced, changed, and left as they came."""

import pytest
import torch
import xarray as xr
from tiny_models import tiny, tiny_tokenizer
from transformers import AutoTokenizer

import interp
from interp.activations import record
from interp.adapters import transformer_lens as door
from interp.adapters import versions
from interp.errors import InputError, UnsupportedModelError
from interp.interventions.ablation import AblateHeads
from interp.interventions.edges import CutEdges
from interp.interventions.patching import PatchHeads, PatchStream

bridges = pytest.importorskip("transformer_lens.model_bridge")

FAMILIES = ["llama", "gemma3", "gpt_oss", "gpt2", "gptj"]
IDS = torch.tensor([[3, 9, 50, 9, 33, 70, 3, 9, 41, 50]])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def bridged(tokenizer):
    def make(name):
        module = tiny(name)[0]
        module.config.architectures = [type(module).__name__]
        bridge = bridges.TransformerBridge.boot_transformers(
            "tiny", hf_model=module, tokenizer=tokenizer, device="cpu"
        )
        bridge.eval()
        with torch.no_grad():
            bridge(IDS)  # the first run puts hooks of its own on the norms
        return bridge

    return make


def same(ours: xr.DataTree, theirs: xr.DataTree) -> None:
    """Statistics equal but for the rounding of two orders of summation."""
    assert set(ours.children) == set(theirs.children)
    for name in ours["self"].data_vars:
        a, b = (torch.from_numpy(t["self"][name].values) for t in (ours, theirs))
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)
    norms = (torch.from_numpy(t["residual"]["norm"].values) for t in (ours, theirs))
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", ["auto", "original"])
def test_a_bridge_gives_the_trace_of_its_model(name, way, bridged, untouched):
    bridge = bridged(name)
    wanted = interp.trace(tiny(name)[0], IDS)
    with untouched(bridge.original_model):
        trace = interp.trace(bridge, IDS, door=way)
    same(trace, wanted)
    is_bridge = "AttentionBridge" in trace.attrs["door"]
    assert is_bridge is (way == "auto")
    if is_bridge:
        assert "size query x key" in trace.attrs["door"]


def changes(model):
    """A zeroed head, a cut edge, a patched head and a patched stream."""
    source = record(model, IDS.flip(1), ("head_output", "stream"))
    heads = interp.HeadSet.parse("L0.H1,L1.H2", model.anatomy)
    yield AblateHeads(heads)
    yield CutEdges([7], [5], heads)
    yield PatchHeads(source, heads)
    yield PatchStream(source, (1,), tokens=(4,))


@pytest.mark.parametrize("name", FAMILIES)
def test_interventions_give_the_same_logits_at_every_door(name, bridged):
    plain, bridge = interp.load(tiny(name)[0]), bridged(name)
    model = interp.load(bridge)
    with torch.no_grad():
        untouched = plain.module(IDS).logits
        for change, at_bridge in zip(changes(plain), changes(model), strict=True):
            with change(plain):
                wanted = plain.module(IDS).logits
            with at_bridge(bridge):
                ours = bridge(IDS)
            with door.unbridged(model.module), change(model):
                original = model.module(IDS).logits
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(original, wanted, rtol=1e-4, atol=1e-4)
            assert (wanted - untouched).abs().max() > 1e-2


def test_hooks_of_the_bridge_still_act_under_a_trace(bridged):
    bridge = bridged("llama")

    def double(z, hook):
        return 2 * z

    before = interp.trace(bridge, IDS)
    with bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_z", double)]):
        hooked = interp.trace(bridge, IDS)
    first, second = (
        (before["self"]["entropy"] - hooked["self"]["entropy"]).sel(layer=layer)
        for layer in (0, 1)
    )
    assert not first.any()
    assert second.any()


def test_queries_cannot_be_patched_where_the_bridge_shows_only_scores(bridged):
    model = interp.load(bridged("llama"))
    with pytest.raises(UnsupportedModelError, match="only its scores can be seen"):
        record(model, IDS, ("q",))
    with door.unbridged(model.module):
        assert record(model, IDS, ("q",))["self"]["q"].sizes["query"] == IDS.shape[1]


def test_an_intervention_on_the_bridge_does_not_reach_behind_it(bridged):
    bridge = bridged("llama")
    model = interp.load(bridge)
    change = AblateHeads(interp.HeadSet.parse("L0.H1", model.anatomy))
    with change(model), pytest.raises(InputError, match=r"within .*unbridged"):
        interp.trace(bridge, IDS, door="original")
    with door.unbridged(model.module), change(model):
        inside = interp.trace(model, IDS)
    with change(model):
        same(interp.trace(bridge, IDS), inside)


def test_a_failure_leaves_the_bridge_in_place(bridged, untouched):
    bridge = bridged("llama")
    module = bridge.original_model
    parts = {name: id(part) for name, part in module.named_modules()}
    with untouched(module):
        with door.unbridged(module):
            assert {name: id(p) for name, p in module.named_modules()} != parts
        with pytest.raises(RuntimeError, match="full disk"), door.unbridged(module):
            raise RuntimeError("full disk")
    assert {name: id(part) for name, part in module.named_modules()} == parts


def test_a_moved_name_is_told(bridged, monkeypatch):
    bridge = bridged("llama")
    module = bridge.original_model
    base = bridges.generalized_components.base
    monkeypatch.delattr(base, "GeneralizedComponent")
    with (
        pytest.raises(UnsupportedModelError, match="GeneralizedComponent was looked"),
        door.unbridged(module),
    ):
        pass
    monkeypatch.setattr(type(bridge), "original_model", None, raising=False)
    monkeypatch.delitem(vars(bridge), "original_model", raising=False)
    monkeypatch.delitem(bridge._modules, "original_model", raising=False)
    with pytest.raises(UnsupportedModelError, match="'original_model'; found NoneType"):
        interp.load(bridge)


def test_another_version_warns_once(bridged, monkeypatch):
    versions.warn_untested.cache_clear()
    monkeypatch.setattr(versions, "version", lambda package: "5.0.1")
    bridge = bridged("llama")
    with pytest.warns(UserWarning, match=r"transformer-lens 5\.0\.1 .* tested with 4"):
        interp.load(bridge)
    interp.load(bridge)
    versions.warn_untested.cache_clear()


def test_a_door_is_for_its_own_kind_of_model():
    with pytest.raises(InputError, match="a TransformerBridge, got LlamaForCausalLM"):
        interp.trace(tiny("llama")[0], IDS, door="original")
    wrong: str = "window"
    with pytest.raises(InputError, match="there are auto, original, nnsight"):
        interp.trace(tiny("llama")[0], IDS, door=wrong)  # type: ignore[arg-type]


def test_a_pattern_that_a_hook_changes_is_not_lost_in_silence(bridged):
    bridge = bridged("llama")

    def first_only(pattern, hook):
        pattern = torch.zeros_like(pattern)
        pattern[..., 0] = 1
        return pattern

    with (
        bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", first_only)]),
        pytest.raises(UnsupportedModelError, match="changed between softmax and"),
    ):
        interp.trace(bridge, IDS)
