"""Models that are spread over devices, lie on the disk, or are compiled."""

from importlib.util import find_spec

import pytest
import torch
import transformers as hf
import xarray as xr
from tiny_models import tiny

import interp
from interp.doctor import examine
from interp.errors import UnsupportedModelError
from interp.interventions import AblateHeads

IDS = [5, 9, 33, 7, 61, 12]


def half_on_disk(module, folder):
    """A Llama whose second half lies on the disk."""
    module.save_pretrained(folder / "model")
    first = ("model.embed_tokens", "model.rotary_emb", "model.layers.0")
    last = ("model.layers.1", "model.norm", "lm_head")
    places = dict.fromkeys(first, "cpu") | dict.fromkeys(last, "disk")
    return hf.AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=places, offload_folder=folder / "disk"
    ).eval()


@pytest.fixture
def offloaded(tmp_path):
    return half_on_disk(tiny("llama")[0], tmp_path)


def test_weights_on_the_disk_are_traced_as_if_they_were_here(offloaded):
    whole = interp.load(tiny("llama")[0])
    ours = interp.load(offloaded)
    assert offloaded.lm_head.weight.is_meta

    assert ours.content_hash == whole.content_hash
    xr.testing.assert_identical(
        interp.trace(ours, IDS)["self"].to_dataset(),
        interp.trace(whole, IDS)["self"].to_dataset(),
    )
    a, b = (interp.trace_generation(m, IDS, max_new_tokens=4) for m in (ours, whole))
    assert a.attrs["generated"] == b.attrs["generated"]
    heads = interp.HeadSet.parse("L0.H1,L1.H2", whole.anatomy)
    with AblateHeads(heads)(ours), AblateHeads(heads)(whole), torch.no_grad():
        ids = torch.tensor([IDS])
        assert torch.equal(ours.module(ids).logits, whole.module(ids).logits)
    assert offloaded.lm_head.weight.is_meta, "nothing was left behind"


def test_what_is_no_number_is_found_on_the_disk_as_well(tmp_path):
    broken = tiny("llama")[0]
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    module = half_on_disk(broken, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight"):
        interp.load(module)


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        module = hf.LlamaForCausalLM(tiny("llama")[0].config).eval()
    with pytest.raises(UnsupportedModelError, match="holds no values"):
        interp.load(module)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_compiled_model_is_traced_by_its_own_code(wrapped, untouched):
    plain = interp.load(tiny("llama")[0])
    module = tiny("llama")[0]
    compiled = torch.compile(module, backend="eager") if wrapped else module
    if not wrapped:
        module.compile(backend="eager")
    ids = torch.tensor([IDS])
    with torch.no_grad():
        before = compiled(ids).logits
    model = interp.load(compiled)
    xr.testing.assert_identical(
        interp.trace(model, IDS)["self"].to_dataset(),
        interp.trace(plain, IDS)["self"].to_dataset(),
    )
    heads = interp.HeadSet.parse("L0.H1", plain.anatomy)
    with AblateHeads(heads)(model), AblateHeads(heads)(plain), torch.no_grad():
        assert torch.equal(compiled(ids).logits, plain.module(ids).logits)
    with torch.no_grad():
        assert torch.equal(compiled(ids).logits, before)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="is installed")
def test_weights_that_need_another_package_are_told_with_its_name(tmp_path):
    module = tiny("llama")[0]
    module.save_pretrained(tmp_path)
    module.config.quantization_config = hf.BitsAndBytesConfig(load_in_8bit=True)
    module.config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"bitsandbytes.*Install"):
        interp.load(tmp_path)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="is not installed")
def test_quantized_weights_are_traced_as_the_model_itself_runs_them(tmp_path):
    tiny("llama")[0].save_pretrained(tmp_path / "plain")
    module = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain",
        quantization_config=hf.BitsAndBytesConfig(load_in_8bit=True),
    ).eval()
    module.save_pretrained(tmp_path / "quantized")
    for ref in (module, tmp_path / "quantized"):
        model = interp.load(ref)
        kinds = {type(part).__name__ for part in model.module.modules()}
        assert "Linear8bitLt" in kinds
        found = examine(model, torch.tensor([IDS]), peers=False)
        assert found.agrees, found.doors
        assert found.doors["works"].all(), found.doors
