"""Loading from every kind of place, and every way in which that can fail."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import transformers as hf
from huggingface_hub import constants
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny, tiny_tokenizer

from interp import catalog
from interp.checkpoints import gguf
from interp.errors import InputError, UnsupportedModelError
from interp.models import Model, load, nonfinite_parameters
from interp.weights import content_hash, layers_of

IDS = torch.tensor([[1, 5, 9, 13, 7, 5, 9]])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-llama"
    tiny("llama")[0].save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


def logits(module: hf.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return module(IDS).logits


class TestFolders:
    def test_a_folder_gives_the_model_that_was_saved(self, llama):
        model = load(llama, device="cpu")
        assert isinstance(model.module, hf.LlamaForCausalLM)
        assert not model.module.training
        assert torch.equal(logits(model.module), logits(tiny("llama")[0]))
        assert model.name == "tiny-llama"
        assert model.max_tokens == 64
        assert model.dtype == torch.float32
        assert model.device == torch.device("cpu")
        assert model.tokenizer is not None
        assert model.tokenizer("w3 w4").input_ids == [3, 4]

    @pytest.mark.parametrize("family", ["llama", "t5", "whisper", "bert", "vit"])
    def test_the_class_is_the_one_that_the_config_names(self, family, tmp_path):
        module, _ = tiny(family)
        module.save_pretrained(tmp_path)
        model = load(str(tmp_path), device="cpu")
        assert type(model.module) is type(module)
        assert model.tokenizer is None

    def test_without_a_named_class_the_config_decides(self, llama):
        config = json.loads((llama / "config.json").read_text())
        del config["architectures"]
        (llama / "config.json").write_text(json.dumps(config))
        assert isinstance(load(llama, device="cpu").module, hf.LlamaForCausalLM)

    def test_shards_and_one_file_hold_the_same_content(self, llama, tmp_path):
        tiny("llama")[0].save_pretrained(tmp_path / "s", max_shard_size="20KB")
        assert len(list((tmp_path / "s").glob("*.safetensors"))) > 1
        sharded = load(tmp_path / "s", device="cpu")
        assert sharded.content_hash == load(llama, device="cpu").content_hash

    def test_a_bin_file_is_read_as_weights_only(self, llama):
        (llama / "model.safetensors").unlink()
        torch.save(tiny("llama")[0].state_dict(), llama / "pytorch_model.bin")
        model = load(llama, device="cpu")
        assert torch.equal(logits(model.module), logits(tiny("llama")[0]))

    def test_a_bin_file_that_runs_code_is_refused(self, llama, tmp_path):
        class Runs:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        (llama / "model.safetensors").unlink()
        with (llama / "pytorch_model.bin").open("wb") as file:
            pickle.dump(Runs(), file, protocol=2)
        with pytest.raises(UnsupportedModelError, match="cannot read it"):
            load(llama, device="cpu")
        assert not (tmp_path / "ran").exists()

    def test_the_type_of_the_weights_can_be_chosen(self, llama):
        assert load(llama, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
        assert load(llama, device="cpu", dtype=torch.float64).dtype == torch.float64

    def test_a_tokenizer_from_elsewhere_is_taken(self, tmp_path):
        tiny("llama")[0].save_pretrained(tmp_path / "m")
        tiny_tokenizer().save_pretrained(tmp_path / "t")
        model = load(tmp_path / "m", tokenizer=tmp_path / "t", device="cpu")
        assert model.tokenizer is not None
        assert model.tokenizer("w3").input_ids == [3]

    def test_steps_are_told_and_nothing_else_is_printed(self, llama, capfd):
        steps: list[str] = []
        load(llama, device="cpu", progress=steps.append)
        assert steps == ["loading tiny-llama", "checking tiny-llama"]
        assert capfd.readouterr() == ("", "")


class TestBrokenFolders:
    def test_no_such_path(self, tmp_path):
        for ref in [tmp_path / "no", f"{tmp_path}/no", "./no", "no/no/no", "no.gguf"]:
            with pytest.raises(InputError, match="no such file or folder"):
                load(ref)

    def test_a_folder_without_a_config_is_told_by_what_it_holds(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(
            UnsupportedModelError, match=r"config\.json \(it holds notes\.txt\)"
        ):
            load(tmp_path)

    def test_a_file_of_another_kind(self, llama):
        with pytest.raises(InputError, match=r"not named\s+\.gguf"):
            load(llama / "model.safetensors")

    def test_a_config_that_is_no_json(self, llama):
        (llama / "config.json").write_text("{")
        with pytest.raises(UnsupportedModelError, match="cannot read it"):
            load(llama)

    def test_a_family_that_does_not_exist(self, llama):
        (llama / "config.json").write_text('{"model_type": "nonesuch"}')
        with pytest.raises(UnsupportedModelError, match="nonesuch"):
            load(llama)

    def test_weights_that_are_not_there(self, llama):
        (llama / "model.safetensors").unlink()
        with pytest.raises(UnsupportedModelError, match="cannot read it"):
            load(llama)

    def test_weights_that_are_cut_short(self, llama):
        os.truncate(llama / "model.safetensors", 5_000)
        with pytest.raises(UnsupportedModelError, match="cannot read it"):
            load(llama, device="cpu")

    def test_a_missing_weight_is_not_made_up(self, llama):
        state = tiny("llama")[0].state_dict()
        del state["model.layers.1.self_attn.k_proj.weight"]
        (llama / "model.safetensors").unlink()
        torch.save(state, llama / "pytorch_model.bin")
        with pytest.raises(UnsupportedModelError, match=r"lacks 1 .*layers\.1.*k_proj"):
            load(llama, device="cpu")

    def test_weights_of_another_shape(self, llama):
        config = json.loads((llama / "config.json").read_text())
        config["intermediate_size"] = 52
        (llama / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match="tiny-llama"):
            load(llama, device="cpu")

    def test_a_tokenizer_that_cannot_be_read(self, llama):
        (llama / "tokenizer_config.json").write_text("{")
        with pytest.raises(InputError, match="tokenizer="):
            load(llama, device="cpu")

    def test_an_empty_tokenizer_is_not_taken_for_one(self, tmp_path):
        tiny("bert")[0].save_pretrained(tmp_path)
        with pytest.raises(InputError, match="vocabulary is empty"):
            load(tmp_path, tokenizer=tmp_path, device="cpu")


class TestNames:
    def test_a_mistyped_catalog_name_suggests_the_nearest(self):
        with pytest.raises(InputError, match="Did you mean 'smollm2-135m'"):
            load("smolm2-135")
        with pytest.raises(InputError, match="Did you mean 'smollm2-135m'"):
            catalog.entry("SmolLM2-135M")

    def test_a_hub_model_that_cannot_be_reached(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            UnsupportedModelError, match=r"hub model 'nobody/nothing'.*connection"
        ) as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("option", [{"device": "nonesuch"}, {"device": "cuda:99"}])
    def test_a_device_that_does_not_exist(self, option, llama):
        with pytest.raises(InputError, match=r"has cpu.*'auto'"):
            load(llama, **option)

    @pytest.mark.parametrize("dtype", ["float99", "nn", "int8", torch.int32])
    def test_a_type_that_is_no_float(self, dtype, llama):
        with pytest.raises(InputError, match="Choose float32"):
            load(llama, dtype=dtype)


class TestLoadedModules:
    def test_a_module_is_wrapped_without_a_change(self):
        module, _ = tiny("llama")
        module.model.layers[0].self_attn.q_proj.requires_grad_(False)
        before = {
            n: (p.data_ptr(), p.requires_grad) for n, p in module.named_parameters()
        }
        model = load(module, tokenizer=tiny_tokenizer())
        after = {
            n: (p.data_ptr(), p.requires_grad) for n, p in module.named_parameters()
        }
        assert model.module is module
        assert before == after
        assert model.name == "LlamaForCausalLM"
        assert model.anatomy.n_layers == 2
        assert model.tokenizer is not None

    def test_a_model_comes_back_as_it_is(self):
        model = load(tiny("llama")[0])
        assert isinstance(model, Model)
        assert load(model) is model

    def test_training_mode_is_refused(self):
        with pytest.raises(InputError, match=r"Call model\.eval\(\) first"):
            load(tiny("llama")[0].train())

    def test_a_module_is_not_moved_or_cast(self):
        with pytest.raises(InputError, match="already loaded"):
            load(tiny("llama")[0], dtype="bfloat16")

    def test_a_module_of_another_library_is_refused(self):
        with pytest.raises(UnsupportedModelError, match=r"torch\.nn.*Linear"):
            load(torch.nn.Linear(2, 2))


class TestWeights:
    def test_nan_and_infinity_are_counted_by_parameter(self):
        module, _ = tiny("llama")
        assert nonfinite_parameters(module) == {}
        with torch.no_grad():
            module.model.layers[1].mlp.up_proj.weight[0, :3] = torch.nan
            module.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.inf
            module.model.norm.weight[:2] = torch.tensor([torch.inf, -torch.inf])
        found = nonfinite_parameters(module)
        assert found == {
            "model.layers.1.self_attn.q_proj.weight": 1,
            "model.layers.1.mlp.up_proj.weight": 3,
            "model.norm.weight": 2,
        }
        assert list(layers_of(found)) == ["layer 1", "model.norm"]

    def test_large_values_are_not_taken_for_infinity(self):
        module = torch.nn.Linear(64, 64, bias=False)
        torch.nn.init.constant_(module.weight, 3e38)
        assert nonfinite_parameters(module) == {}

    def test_nan_weights_are_refused_with_their_layer(self, llama):
        module, _ = tiny("llama")
        with torch.no_grad():
            module.model.layers[1].mlp.up_proj.weight[0, :3] = torch.nan
        module.save_pretrained(llama)
        with pytest.raises(
            UnsupportedModelError, match=r"layer 1: .*up_proj\.weight \(3 values\)"
        ):
            load(llama, device="cpu")
        assert load(llama, device="cpu", allow_nonfinite=True).anatomy.n_layers == 2

    def test_the_hash_covers_every_value_the_type_and_the_config(self):
        first = content_hash(tiny("llama")[0])
        assert first == content_hash(tiny("llama")[0])
        hashes = {first, content_hash(tiny("llama")[0].double())}
        module, _ = tiny("llama")
        with torch.no_grad():
            module.lm_head.weight[-1, -1] += 1e-6
        hashes.add(content_hash(module))
        module, _ = tiny("llama")
        module.config.rms_norm_eps = 0.5
        hashes.add(content_hash(module))
        assert len(hashes) == 4

    def test_the_hash_does_not_depend_on_the_place(self, llama):
        moved = llama.rename(llama.with_name("elsewhere"))
        assert load(moved, device="cpu").content_hash == content_hash(tiny("llama")[0])


class TestGguf:
    def test_a_gguf_file_gives_the_model_that_was_written(self, tiny_file, capfd):
        model = load(tiny_file, device="cpu")
        assert capfd.readouterr() == ("", "")
        assert model.name == "tiny.gguf"
        assert model.module.config.architectures == ["LlamaForCausalLM"]
        torch.testing.assert_close(logits(model.module), logits(tiny("llama")[0]))
        assert model.tokenizer is not None
        assert len(model.tokenizer("ab").input_ids) == 1

    def test_the_header_tells_the_size_of_the_file(self, tiny_file):
        header = gguf.read_header(tiny_file)
        assert header.architecture == "llama"
        assert header.n_tensors == len(tiny("llama")[0].state_dict())
        # The writer pads the last tensor to the alignment.
        assert 0 <= tiny_file.stat().st_size - header.size_bytes < 32

    @pytest.mark.parametrize("kept", [0.01, 0.05, 0.5, 0.99])
    def test_a_file_cut_short_is_told_by_its_sizes(self, kept, tiny_file, tmp_path):
        data = tiny_file.read_bytes()
        short = tmp_path / "short.gguf"
        short.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(
            InputError, match=rf"holds {int(kept * len(data)):,} bytes.*again"
        ):
            load(short)

    @pytest.mark.parametrize("data", [b"", b"GG", b"PK\3\4 a zip file", b"GGML" * 9])
    def test_a_file_that_only_claims_to_be_gguf(self, data, tmp_path):
        (tmp_path / "false.gguf").write_bytes(data)
        with pytest.raises(InputError, match="instead of b'GGUF'"):
            load(tmp_path / "false.gguf")

    @pytest.mark.parametrize(
        "data", [b"\0\0\0\3" + bytes(20), b"\3\0\0\0" + b"\xff" * 64]
    )
    def test_a_header_of_nonsense(self, data, tmp_path):
        (tmp_path / "odd.gguf").write_bytes(b"GGUF" + data)
        with pytest.raises(InputError, match="Download it again"):
            load(tmp_path / "odd.gguf")

    def test_a_missing_tensor_is_not_made_up(self, tmp_path):
        missing = "model.layers.1.self_attn.k_proj.weight"
        write_tiny_gguf(tmp_path / "less.gguf", without=missing)
        with pytest.raises(UnsupportedModelError, match=r"lacks 1 .*layers\.1.*k_proj"):
            load(tmp_path / "less.gguf", device="cpu")

    def test_a_family_that_transformers_cannot_read(self, tiny_file, tmp_path):
        odd = tmp_path / "odd.gguf"
        odd.write_bytes(tiny_file.read_bytes().replace(b"llama", b"lxxma"))
        with pytest.raises(UnsupportedModelError, match="'lxxma'"):
            load(odd)


@pytest.mark.real
def test_the_default_model_has_its_known_anatomy():
    model = load("smollm2-135m", device="cpu")
    sites = model.anatomy.at("self")
    assert len(sites) == model.anatomy.n_layers == 30
    assert {(s.n_heads, s.n_kv_heads, s.d_head) for s in sites} == {(9, 3, 64)}
    assert model.max_tokens == 8192
    assert model.tokenizer is not None
    ids = model.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = int(model.module(ids).logits[0, -1].argmax())
    assert model.tokenizer.decode([best]) == " Paris"
