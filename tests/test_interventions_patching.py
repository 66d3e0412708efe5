"""Patches from other runs: against the other run itself, and against dense sums."""

from typing import get_args

import numpy as np
import pytest
import torch
import xarray as xr
from edited_calls import (
    CALLS,
    DECODERS,
    GRID,
    ON,
    SITE,
    SOME,
    N,
    call_of,
    edited,
    logits_of,
    same,
    weights_of,
)
from tiny_models import tiny

import interp
from interp.activations import record
from interp.errors import InputError, NotCapturedError
from interp.heads import HeadSet
from interp.interventions.intervention import Composed
from interp.interventions.patching import (
    HeadPart,
    PatchHeads,
    PatchStream,
    StreamPart,
    patch_paths,
)
from interp.kernels import reference
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule

TEXT = list(range(10, 20))
OTHER = [40, 41, 50, 60, 43, 44, 45, 46, 70, 71]
HEAD_PARTS = get_args(HeadPart)


def load(name="llama", dtype=torch.float64):
    module = tiny(name)[0].to(dtype)
    if dtype == torch.float64:  # grouped products know none
        module.set_experts_implementation("eager")
    return interp.load(module)


NOTHING = Composed(())
"""Still runs our attention: some families' own takes softmaxes in float32."""


def logits(model, ids, intervention=NOTHING, **options):
    ids = torch.tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    with torch.no_grad(), intervention(model):
        return model.module(ids, **options).logits


def heads_of(model, *layers):
    grid = HeadSet.of([], model.anatomy).grid
    layers = layers or range(grid.n_layers)
    pairs = [(layer, head) for layer in layers for head in range(grid.n_heads)]
    return HeadSet.of(pairs, grid)


@pytest.mark.parametrize("part", HEAD_PARTS)
@pytest.mark.parametrize("name", DECODERS)
def test_heads_of_the_same_run_change_nothing(name, part):
    model = load(name)
    patch = PatchHeads(record(model, TEXT), heads_of(model), part)
    same(logits(model, TEXT, patch), logits(model, TEXT))


@pytest.mark.parametrize("part", get_args(StreamPart))
@pytest.mark.parametrize("name", DECODERS)
def test_the_stream_of_another_text_gives_that_text_s_logits(name, part):
    model = load(name)
    batch = [OTHER, TEXT[::-1]]
    source = record(model, batch)
    wanted = logits(model, batch)
    n_blocks = model.anatomy.n_layers
    if part == "stream":
        for layer in range(n_blocks + 1):
            patch = PatchStream(source, (layer,))
            same(logits(model, [TEXT, TEXT], patch), wanted)
    else:
        other = "mlp" if part == "attention" else "attention"
        blocks = tuple(range(n_blocks))
        patch = PatchStream(source, (0,)) + PatchStream(source, blocks, part)
        patch += PatchStream(source, blocks[:1], other)
        same(logits(model, [TEXT, TEXT], patch), wanted)
        alone = logits(model, [TEXT, TEXT], PatchStream(source, blocks, part))
        assert (alone - wanted).abs().max() > 1e-3


class TestHeadParts:
    """On random calls, with the other run's arrays drawn at random too."""

    def source(self, call, n_tokens=N, n_samples=None):
        draw = np.random.default_rng(1)
        lead = () if n_samples is None else (n_samples,)
        names = () if n_samples is None else ("sample",)
        shapes = {
            "q": ("query", "head", call.n_heads),
            "head_output": ("query", "head", call.n_heads),
            "k": ("key", "kv_head", call.key.shape[1]),
            "v": ("key", "kv_head", call.key.shape[1]),
        }
        node = {
            name: (
                (*names, "layer", token, head, "d_head"),
                draw.normal(size=(*lead, 3, n_tokens, count, 8)),
            )
            for name, (token, head, count) in shapes.items()
        }
        return xr.DataTree.from_dict({"/self": xr.Dataset(node)})

    def in_place(self, values, call, n_heads):
        """The source's layer as `[batch, head, token, d]`, where each text lies."""
        _, _, place = logits_of(call)
        values = torch.from_numpy(values.values)
        rows = values[1] if values.dim() == 4 else values[:, 1]
        rows = rows.expand(call.n_batch, *rows.shape[-3:])
        at = place.clamp(min=0)[:, :, None, None].expand(-1, -1, n_heads, 8)
        return rows.gather(1, at).transpose(1, 2)

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("has_samples", [False, True])
    def test_a_pattern_is_that_of_the_other_queries_and_keys(self, name, has_samples):
        call = call_of(name)
        source = self.source(call, n_samples=call.n_batch if has_samples else None)
        node = source["self"]
        q, k = (self.in_place(node[n], call, c) for n, c in (("q", 4), ("k", 2)))
        other = AttentionCall(q, k, call.value, call.score, call.mask)
        both, visible, _ = logits_of(call)
        both[:, ON] = logits_of(other)[0][:, ON]
        output, pattern = edited(call, PatchHeads(source, SOME, "pattern"))
        wanted = weights_of(call, both, visible)
        same(pattern, wanted)
        same(output, wanted @ call.value.repeat_interleave(2, 1))

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("tokens", [None, (0, 3, 7)])
    def test_other_queries_keys_and_values_take_their_places(self, name, tokens):
        call = call_of(name)
        source = self.source(call)
        _, _, place = logits_of(call)
        chosen = place >= 0
        if tokens is not None:
            chosen &= torch.isin(place, torch.tensor(tokens))
        for part, field, n_heads in (("q", "query", 4), ("k", "key", 2)):
            new = self.in_place(source["self"][part], call, n_heads)
            old = getattr(call, field)
            own = ON if part == "q" else [0]
            wanted = old.clone()
            put = torch.where(chosen[:, None, :, None], new, old)
            wanted[:, own] = put[:, own]
            patched = PatchHeads(source, SOME, part, tokens).inputs(SITE, call)
            assert torch.equal(getattr(patched, field), wanted), part
            assert torch.equal(patched.value, call.value)

    def test_outputs_of_some_tokens_take_their_places(self):
        call = call_of("left padding")
        source = self.source(call)
        before = edited(call, PatchHeads(source, SOME, "v", ()))[0]
        after = edited(call, PatchHeads(source, SOME, "head_output", (2,)))[0]
        wanted = before.clone()
        _, _, place = logits_of(call)
        for sample, row in enumerate(place):
            at = int((row == 2).nonzero())
            values = source["self"]["head_output"][1, 2, ON].values
            wanted[sample, ON, at] = torch.from_numpy(values)
        assert torch.equal(after, wanted)

    def test_a_pattern_of_a_few_rows_needs_only_the_keys_that_they_see(self):
        call = call_of("plain")
        short = self.source(call, n_tokens=8)
        pattern = edited(call, PatchHeads(short, SOME, "pattern", (2, 7)))[1]
        own = edited(call, PatchHeads(short, SOME, "v", ()))[1]
        q, k = (torch.from_numpy(short["self"][n][1].values) for n in ("q", "k"))
        scores = q[7, 1] @ k[:, 0].T * 8**-0.5
        same(pattern[0, 1, 7, :8], scores.softmax(-1))
        others = [row for row in range(N) if row not in (2, 7)]
        same(pattern[:, :, others], own[:, :, others])
        with pytest.raises(InputError, match="at least as long"):
            edited(call, PatchHeads(short, SOME, "pattern", (7, 8)))


@pytest.mark.parametrize("part", HEAD_PARTS)
def test_decoding_goes_on_behind_the_patched_tokens(part):
    model = load()
    source = record(model, OTHER)
    patch = PatchHeads(source, heads_of(model), part, (3, 4))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with patch(model):
        ids = model.module.generate(torch.tensor([TEXT]), **options)
    wanted = logits(model, ids[0, :-1].tolist(), patch)[:, -4:].argmax(-1)
    assert torch.equal(ids[:, -4:], wanted)


def test_only_the_patched_tokens_of_each_padded_text_change():
    model = load()
    source = record(model, OTHER)
    patch = PatchStream(source, (1,), tokens=(0, 2))
    ids = torch.tensor([TEXT, [0] * 3 + TEXT[:7]])
    mask = torch.tensor([[1] * 10, [0] * 3 + [1] * 7])
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    options = {"attention_mask": mask, "position_ids": place}
    padded = logits(model, ids.tolist(), patch, **options)
    same(padded[:1], logits(model, TEXT, patch))
    same(padded[1:, 3:], logits(model, TEXT[:7], patch))
    with patch(model):
        stream = record(model, TEXT, ("stream",))["residual"]["stream"][1]
    plain = record(model, TEXT, ("stream",))["residual"]["stream"][1]
    changed = (stream != plain).any("d_model").values.nonzero()[0]
    assert changed.tolist() == [0, 2]
    wanted = source["residual"]["stream"][1, [0, 2]]
    np.testing.assert_array_equal(stream[[0, 2]], wanted)


class ByHand:
    """A Llama's forward, written out for one text."""

    def __init__(self, model, ids):
        self.llama = model.module.model
        self.head = model.module.lm_head
        self.stream = self.llama.embed_tokens(torch.tensor([ids]))
        place = torch.arange(len(ids))[None]
        self.cosine, self.sine = self.llama.rotary_emb(self.stream, place)

    def qkv(self, layer, stream):
        block = self.llama.layers[layer]
        states = block.input_layernorm(stream)
        parts = []
        for name, n_heads in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2)):
            part = getattr(block.self_attn, name)(states)
            part = part.view(1, -1, n_heads, 8).transpose(1, 2)
            if name != "v_proj":
                first, second = part.chunk(2, -1)
                turned = torch.cat([-second, first], -1)
                part = part * self.cosine + turned * self.sine
            parts.append(part)
        return parts

    def heads(self, q, k, v):
        rule = MaskRule.causal(q.shape[2])
        call = AttentionCall(q, k, v, ScoreRule(8**-0.5), rule)
        return reference.attention(call)

    def attention(self, layer, heads):
        own = self.llama.layers[layer].self_attn
        return own.o_proj(heads.transpose(1, 2).flatten(2))

    def mlp(self, layer, stream):
        block = self.llama.layers[layer]
        return block.mlp(block.post_attention_layernorm(stream))

    def logits(self, stream):
        return self.head(self.llama.norm(stream))


@pytest.mark.parametrize("freeze_mlp", [True, False])
@pytest.mark.parametrize("parts", [("q",), ("q", "k", "v")])
@torch.no_grad()
def test_the_effect_of_a_direct_path_is_the_one_summed_up_by_hand(parts, freeze_mlp):
    model = load()
    senders = HeadSet.of([(0, 1)], model.anatomy)
    receivers = HeadSet.of([(1, 2)], model.anatomy)
    paths = patch_paths(
        model, TEXT, OTHER, senders, receivers, parts=parts, freeze_mlp=freeze_mlp
    )

    clean, corrupted = ByHand(model, TEXT), ByHand(model, OTHER)
    heads = clean.heads(*clean.qkv(0, clean.stream))
    sent = heads.clone()
    sent[:, 1] = corrupted.heads(*corrupted.qkv(0, corrupted.stream))[:, 1]
    middle = clean.stream + clean.attention(0, heads)
    plain = middle + clean.mlp(0, middle)
    sent_middle = clean.stream + clean.attention(0, sent)
    through = clean.mlp(0, middle if freeze_mlp else sent_middle)
    q, k, v = clean.qkv(1, plain)
    new_q, new_k, new_v = clean.qkv(1, sent_middle + through)
    q[:, 2] = new_q[:, 2]
    if "k" in parts:
        k[:, 1], v[:, 1] = new_k[:, 1], new_v[:, 1]
    stream = plain + clean.attention(1, clean.heads(q, k, v))
    wanted = clean.logits(stream + clean.mlp(1, stream))

    same(logits(model, TEXT, paths), wanted)
    assert (wanted - logits(model, TEXT)).abs().max() > 1e-3


def test_paths_from_all_heads_and_back_to_themselves():
    model = load()
    everyone = heads_of(model)
    last = heads_of(model, 1)
    paths = patch_paths(model, TEXT, OTHER, everyone, last)
    assert (logits(model, TEXT, paths) - logits(model, TEXT)).abs().max() > 1e-3
    same_text = patch_paths(model, TEXT, TEXT, heads_of(model, 0), last)
    same(logits(model, TEXT, same_text), logits(model, TEXT))


@pytest.mark.parametrize("part", [*HEAD_PARTS, *get_args(StreamPart)])
def test_the_model_is_as_before_also_after_a_failure(part, untouched):
    model = load(dtype=torch.float32)
    source = record(model, OTHER)
    if part in HEAD_PARTS:
        patch = PatchHeads(source, heads_of(model), part)
    else:
        patch = PatchStream(source, (0,), part)
    with untouched(model.module):
        with patch(model):
            interp.trace(model, TEXT)
        with pytest.raises(InputError, match="at least as long"), patch(model):
            interp.trace(model, [*TEXT, 5])


class TestRefusals:
    """What cannot be patched is refused before the model runs."""

    def test_parts_that_there_are_not_or_that_were_not_recorded(self):
        model = load()
        source = record(model, TEXT, ("q",))
        heads = heads_of(model)
        with pytest.raises(InputError, match="head_output, q, k"):
            PatchHeads(source, heads, "query")
        with pytest.raises(InputError, match="stream, attention, mlp"):
            PatchStream(source, (0,), "q")
        with pytest.raises(NotCapturedError, match="'k' of 'self'; the run holds self"):
            PatchHeads(source, heads, "pattern")
        with pytest.raises(NotCapturedError, match="'stream' of 'residual'"):
            PatchStream(source, (0,))

    def test_keys_of_half_a_group(self):
        model = load()
        source = record(model, TEXT)
        half = HeadSet.of([(0, 1)], model.anatomy)
        for part in ("k", "v"):
            with pytest.raises(InputError, match="as_kv_groups"):
                PatchHeads(source, half, part)

    @pytest.mark.parametrize("layer", [-1, 3])
    @pytest.mark.parametrize("part", get_args(StreamPart))
    def test_layers_beyond_the_model(self, part, layer):
        model = load()
        last = layer - 1 if part != "stream" and layer > 0 else layer
        patch = PatchStream(record(model, TEXT), (last,), part)
        with pytest.raises(InputError, match=f"Layer {last} of"):
            patch(model).__enter__()

    def test_paths_that_lead_nowhere(self):
        model = load()
        first, last = heads_of(model, 0), heads_of(model, 1)
        with pytest.raises(InputError, match="behind the senders"):
            patch_paths(model, TEXT, OTHER, last, last)
        with pytest.raises(InputError, match="read q, k and v"):
            patch_paths(model, TEXT, OTHER, first, last, parts=("head_output",))
        with pytest.raises(InputError, match="empty"):
            patch_paths(model, TEXT, OTHER, first, first - first)

    def test_heads_of_another_grid(self):
        model = load()
        source = record(model, TEXT)
        with pytest.raises(InputError, match="this llama model"):
            PatchHeads(source, HeadSet.of([(1, 0)], GRID), "q")(model).__enter__()
