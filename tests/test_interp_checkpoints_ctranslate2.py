"""A tiny Whisper written as a CTranslate2 file, and read back."""

import json
import struct

import numpy as np
import pytest
import torch
import transformers
from tiny_models import tiny

import interp
from interp.checkpoints import ctranslate2
from interp.errors import InputError, UnsupportedModelError

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def string(text):
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def variable(name, values):
    values = np.asarray(values)
    head = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
    data = values.tobytes()
    kind = struct.pack("<BI", TYPES[values.dtype.name], len(data))
    return string(name) + head + kind + data


def layer(module, stack, number, packed):
    """The variables of one layer."""
    own = f"{stack}/layer_{number}"

    def stacked(*linears):
        weight = np.concatenate([x.weight.detach().numpy() for x in linears])
        bias = [
            np.zeros(len(x.weight), np.float32)
            if x.bias is None
            else x.bias.detach().numpy()
            for x in linears
        ]
        return weight, np.concatenate(bias)

    attention = module.self_attn
    parts = {
        "self_attention/linear_0": stacked(
            attention.q_proj, attention.k_proj, attention.v_proj
        ),
        "self_attention/linear_1": stacked(attention.out_proj),
        "ffn/linear_0": stacked(module.fc1),
        "ffn/linear_1": stacked(module.fc2),
    }
    norms = {
        "self_attention": module.self_attn_layer_norm,
        "ffn": module.final_layer_norm,
    }
    if stack == "decoder":
        cross = module.encoder_attn
        parts |= {
            "attention/linear_0": stacked(cross.q_proj),
            "attention/linear_1": stacked(cross.k_proj, cross.v_proj),
            "attention/linear_2": stacked(cross.out_proj),
        }
        norms["attention"] = module.encoder_attn_layer_norm
    for name, (weight, bias) in parts.items():
        yield f"{own}/{name}/bias", bias
        if packed == "int8":
            scale = 127 / np.abs(weight).max(axis=1)
            yield f"{own}/{name}/weight_scale", scale.astype(np.float32)
            weight = np.round(weight * scale[:, None]).astype(np.int8)
        else:
            weight = weight.astype(packed)
        yield f"{own}/{name}/weight", weight
    for name, norm in norms.items():
        yield f"{own}/{name}/layer_norm/gamma", norm.weight.detach().numpy()
        yield f"{own}/{name}/layer_norm/beta", norm.bias.detach().numpy()


def write(folder, packed="float32", kind="WhisperSpec", leave_out=()):
    """A tiny Whisper as a CTranslate2 folder; gives the model."""
    module = tiny("whisper")[0]
    model = module.model
    found = {"decoder/embeddings/weight": model.decoder.embed_tokens.weight}
    for stack in ("encoder", "decoder"):
        part = getattr(model, stack)
        found |= {
            f"{stack}/position_encodings/encodings": part.embed_positions.weight,
            f"{stack}/layer_norm/gamma": part.layer_norm.weight,
            f"{stack}/layer_norm/beta": part.layer_norm.bias,
        }
    for name in ("conv1", "conv2"):
        conv = getattr(model.encoder, name)
        found[f"encoder/{name}/weight"] = conv.weight
        found[f"encoder/{name}/bias"] = conv.bias
    arrays = {name: values.detach().numpy() for name, values in found.items()}
    for stack in ("encoder", "decoder"):
        arrays[f"{stack}/num_heads"] = np.array(4, np.int16)
        for number, each in enumerate(getattr(model, stack).layers):
            arrays |= dict(layer(each, stack, number, packed))
    for name in leave_out:
        del arrays[name]
    data = struct.pack("<I", 6) + string(kind) + struct.pack("<II", 3, len(arrays))
    data += b"".join(variable(*item) for item in arrays.items())
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(data + struct.pack("<I", 1) + alias)
    (folder / "config.json").write_text(json.dumps({"lang_ids": [5, 6]}))
    words = {"<|endoftext|>": 2, "<|startoftranscript|>": 1, "a": 0, "b": 3}
    words |= {"<|en|>": 5, "<|de|>": 6}
    tokenizer = transformers.WhisperTokenizerFast(vocab=words, merges=[])
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return module


@pytest.mark.parametrize("packed", ["float32", "float16", "int8"])
def test_every_weight_comes_to_its_place(tmp_path, packed):
    theirs = write(tmp_path / "w", packed)
    ours = interp.load(tmp_path / "w", device="cpu")
    state = theirs.state_dict()

    assert ours.module.state_dict().keys() == state.keys()
    for name, values in ours.module.state_dict().items():
        if packed == "float32":
            assert torch.equal(values, state[name]), name
        else:  # rounded once to the packed type
            steps = {"float16": 2**-11, "int8": 1 / 254}[packed]
            room = steps * state[name].abs().amax() + 2**-24
            assert (values - state[name]).abs().max() <= 1.01 * room, name
    _, inputs = tiny("whisper")
    with torch.no_grad():
        given = theirs(**inputs).logits
        if packed == "float32":
            assert torch.equal(ours.module(**inputs).logits, given)
    assert ours.module.config.decoder_start_token_id == 1
    assert ours.module.generation_config.lang_to_id == {"<|en|>": 5, "<|de|>": 6}


def test_a_file_that_is_cut_or_is_another_says_so(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "model.bin").read_bytes()
    for size in (5, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.bin").write_bytes(whole[:size])
        with pytest.raises(InputError, match="Download it again"):
            interp.load(tmp_path)
    (tmp_path / "model.bin").write_bytes(whole[:6] + bytes(200))
    with pytest.raises(InputError, match="CTranslate2"):
        ctranslate2.read(tmp_path / "model.bin")
    write(tmp_path / "m", kind="TransformerSpec")
    with pytest.raises(UnsupportedModelError, match="TransformerSpec"):
        interp.load(tmp_path / "m")
    write(tmp_path / "n", leave_out=["decoder/layer_1/ffn/linear_0/weight"])
    with pytest.raises(UnsupportedModelError, match="fc1"):
        interp.load(tmp_path / "n")
    (tmp_path / "n" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        interp.load(tmp_path / "n")
