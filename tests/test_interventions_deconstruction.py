"""Attention without one of its principles, against what each one means."""

from functools import cache
from typing import get_args

import pytest
import torch
from edited_calls import (
    CALLS,
    OFF,
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
from interp.capture import Capture
from interp.errors import InputError
from interp.interventions.deconstruction import (
    WITH_REFERENCE,
    Principle,
    deconstruct,
    layer_set,
)
from interp.interventions.edges import CutEdges
from interp.interventions.principles import KeyScores, MixerOff, TaylorExp
from interp.kernels.definitions import Pattern
from interp.tasks.reading import shipped

FAMILIES = ["llama", "gemma2", "gpt_oss", "gpt2", "bert"]
TEXT = list(range(10, 20))
OTHER = [40, 41, 50, 60, 43, 44, 45, 46, 70, 71, 72, 73]
ANOTHER = OTHER[::-1]


@cache
def model_of(name):
    module = tiny(name)[0].double()
    if name == "gpt_oss":  # grouped products know no float64
        module.set_experts_implementation("eager")
    return interp.load(module)


def patterns(model, text):
    """Of every layer, `[layer, head, query, key]`."""
    tree = interp.trace(model, text, capture=Capture((Pattern(),), None))
    node = tree["self" if "self" in tree.children else "encoder"]
    return torch.from_numpy(node["pattern"].values).double()


def cropped(pattern, n):
    """The part of the first tokens, each row summing to what it summed to."""
    part = pattern[..., :n, :n]
    return part * pattern[..., :n, :].sum(-1, keepdim=True) / part.sum(-1, keepdim=True)


def near(got, wanted):
    """Equal but for float32, in which a trace is kept."""
    torch.testing.assert_close(got, wanted.to(got), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CALLS)
class TestDefinitions:
    def test_taylor_weights_are_in_proportion_to_the_polynomial(self, name):
        call = call_of(name)
        logits, visible, _ = logits_of(call)
        s = logits.masked_fill(~visible, 0.0)
        share = (1 + s + s**2 / 2) * visible
        total = share.sum(-1, keepdim=True)
        if call.score.sink_logits is not None:
            sink = call.score.sink_logits[:, None, None]
            total = total + 1 + sink + sink**2 / 2
        wanted = weights_of(call, logits, visible)
        wanted[:, ON] = (share / total)[:, ON].nan_to_num(0.0)
        output, pattern = edited(call, TaylorExp(SOME))
        same(pattern, wanted)
        same(output, wanted @ call.value.repeat_interleave(2, 1))

    def test_a_key_has_one_score_for_all_that_see_it(self, name):
        call = call_of(name)
        logits, visible, _ = logits_of(call)
        key = call.key.repeat_interleave(2, 1)
        own = torch.einsum("bhtd,bhtd->bht", call.query, key) * call.score.scale
        if call.score.softcap is not None:
            own = call.score.softcap * torch.tanh(own / call.score.softcap)
        logits[:, ON] = own[:, ON, None, :].expand(-1, -1, N, -1)
        _, pattern = edited(call, KeyScores(SOME))
        same(pattern, weights_of(call, logits, visible))


def test_a_pair_that_was_cut_before_stays_cut():
    call = call_of("plain")
    intervention = CutEdges(None, (0,), SOME) + TaylorExp(SOME)
    pattern = edited(call, intervention)[1]
    assert (pattern[:, ON, 1:, 0] == 0).all()
    assert (pattern[:, OFF, :, 0] > 0).all()
    same(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))


def test_scores_of_keys_need_all_queries_so_decoding_with_a_cache_is_refused():
    model = tiny("llama")[0]
    call = call_of("plain").rows(N - 1, N)
    with pytest.raises(InputError, match="use_cache=False"):
        KeyScores(SOME).weights(SITE, call)
    ids = torch.tensor([TEXT])
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with deconstruct(interp.load(model), "key_scores", (0, 1))(model):
        free = model.generate(ids, use_cache=False, **options)
        again = model(free[:, :-1], use_cache=False).logits[:, -3:].argmax(-1)
        with pytest.raises(InputError, match="for keys 0 to 10"):
            model.generate(ids, **options)
    assert torch.equal(again, free[:, -3:])


class TestPatterns:
    """What a whole model attends to under each principle, in all layers or one."""

    @pytest.mark.parametrize("name", FAMILIES)
    def test_static_is_the_other_text_s_pattern_cropped(self, name):
        model = model_of(name)
        wanted = cropped(patterns(model, OTHER), len(TEXT))
        own = patterns(model, TEXT)
        with deconstruct(model, "static", (0, 1), OTHER)(model):
            near(patterns(model, TEXT), wanted)
        with deconstruct(model, "static", layer_set(2, "hybrid"), OTHER)(model):
            half = patterns(model, TEXT)
        near(half[0], own[0])
        near(half[1], wanted[1])

    @pytest.mark.parametrize("name", FAMILIES)
    def test_mean_is_the_mean_of_the_cropped_patterns(self, name):
        model = model_of(name)
        texts = [OTHER, ANOTHER, TEXT]
        wanted = sum(cropped(patterns(model, each), len(TEXT)) for each in texts) / 3
        with deconstruct(model, "mean", (0, 1), texts)(model):
            near(patterns(model, TEXT), wanted)

    def test_identity_is_the_unit_matrix_and_uniform_one_over_the_seen(self):
        model = model_of("llama")
        eye, ones = torch.eye(len(TEXT)), torch.ones(len(TEXT), len(TEXT)).tril()
        for principle, wanted in (
            ("identity", eye),
            ("uniform", ones / ones.sum(-1, keepdim=True)),
        ):
            with deconstruct(model, principle, (0, 1))(model):
                near(patterns(model, TEXT), wanted.expand(2, 4, -1, -1))

    def test_random_depends_on_the_seed_and_on_no_text(self):
        model = model_of("llama")
        found = []
        for reference, seed, text in (
            (OTHER, 0, TEXT),
            (OTHER, 0, ANOTHER[:10]),
            (OTHER, 1, TEXT),
        ):
            with deconstruct(model, "random", (0, 1), reference, seed=seed)(model):
                found.append(patterns(model, text))
        near(found[1], found[0])
        assert (found[2] - found[0]).abs().max() > 0.1

    def test_random_is_the_pattern_of_gaussian_embeddings(self):
        model = model_of("llama")
        size = model.module.get_input_embeddings()(torch.tensor([OTHER])).std()
        noise = torch.randn(12, 32, generator=torch.Generator().manual_seed(3))
        embeddings = {"inputs_embeds": (noise.double() * size)[None].detach()}
        wanted = cropped(patterns(model, embeddings), len(TEXT))
        with deconstruct(model, "random", (0, 1), OTHER, seed=3)(model):
            near(patterns(model, TEXT), wanted)

    def test_embedding_makes_queries_and_keys_from_the_embedding(self):
        model = model_of("llama")
        module = model.module
        embedding = module.get_input_embeddings()(torch.tensor([TEXT]))
        place = torch.arange(len(TEXT))[None]
        angles = module.model.rotary_emb(embedding, place)
        wanted = []
        for block in module.model.layers:
            states = block.input_layernorm(embedding)
            attention = block.self_attn
            q = attention.q_proj(states).view(1, -1, 4, 8).transpose(1, 2)
            k = attention.k_proj(states).view(1, -1, 2, 8).transpose(1, 2)
            q, k = (rotated(each, *angles) for each in (q, k))
            scores = q @ k.repeat_interleave(2, 1).mT * 8**-0.5
            hidden = torch.ones(10, 10, dtype=torch.bool).triu(1)
            wanted.append(scores.masked_fill(hidden, -torch.inf).softmax(-1)[0])
        with deconstruct(model, "embedding", (0, 1), TEXT)(model):
            near(patterns(model, TEXT), torch.stack(wanted).detach())

    @pytest.mark.parametrize("name", FAMILIES)
    def test_off_writes_nothing_not_even_a_bias(self, name):
        model = model_of(name)
        given = {"input_ids": torch.tensor([TEXT])}
        with deconstruct(model, "off", (0, 1))(model):
            tree = record(model, TEXT, ("attention",))
            logits = model.module(**given).logits
        assert not tree["residual"]["attention"].any()
        shuffled = torch.tensor([[TEXT[0], *TEXT[:0:-1]]])
        with deconstruct(model, "off", (0, 1))(model):
            other = model.module(input_ids=shuffled).logits
        if name not in ("gpt2", "bert"):  # these embed positions
            same(other[:, 1:].flip(1), logits[:, 1:])


def rotated(states, cosine, sine):
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat([-second, first], -1) * sine


def interrupt(done, total):
    if done == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("principle", get_args(Principle))
def test_the_model_is_as_before_also_after_a_failure(principle, untouched):
    model = interp.load(tiny("llama")[0])
    reference = [OTHER] if principle == "mean" else OTHER
    reference = reference if principle in WITH_REFERENCE else None
    with untouched(model.module):
        intervention = deconstruct(model, principle, (1,), reference)
        with pytest.raises(KeyboardInterrupt), intervention(model):
            interp.trace(model, TEXT, progress=interrupt)


def test_provenance_tells_patterns_of_different_runs_of_one_text_apart():
    model = model_of("llama")
    told = [
        str(deconstruct(model, principle, (0,), TEXT, seed=seed))
        for principle, seed in (
            ("static", 0),
            ("random", 0),
            ("random", 1),
            ("embedding", 0),
        )
    ]
    assert len(set(told)) == 4
    assert len({str(deconstruct(model, "static", (0,), TEXT)), told[0]}) == 1


def test_hybrid_layers_are_the_odd_ones():
    assert layer_set(5, "uniform") == (0, 1, 2, 3, 4)
    assert layer_set(5, "hybrid") == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none", (0,)), "off, identity"),
        (("off", ()), "in no layer"),
        (("uniform", (2,)), "L2.H0"),
        (("uniform", (0,), TEXT), "to no other"),
        (("static", (0,)), "got none for static"),
        (("mean", (0,), "a text"), "a list of texts"),
        (("mean", (0,), []), "a list of texts"),
    ],
)
def test_what_means_nothing_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        deconstruct(model_of("llama"), *arguments)


def test_layers_that_there_are_not_and_sets_that_there_are_not_are_refused():
    model = model_of("llama")
    for layer in (2, -1):
        with pytest.raises(InputError, match=f"Layer {layer} of the blocks' attention"):
            MixerOff((layer,))(model).__enter__()
    with pytest.raises(InputError, match="hybrid"):
        layer_set(4, "skip")


def test_a_text_beyond_the_reference_is_refused():
    model = model_of("llama")
    shorter = deconstruct(model, "static", (0, 1), TEXT[:5])
    with shorter(model), pytest.raises(InputError, match="at least as long"):
        interp.trace(model, TEXT)


@pytest.mark.real
@pytest.mark.slow
def test_half_the_layers_cost_far_less_than_all_and_no_mixing_costs_most():
    """Xue et al.: hybrid models keep up, and token mixing is what cannot be spared."""
    model = interp.load("smollm2-135m")
    ids = torch.tensor(model.tokenizer(shipped()[:6000])["input_ids"])
    text, other = ids[None, :256], ids[300:556]
    n_layers = model.anatomy.n_layers

    def nll(principle, kind):
        reference = other if principle == "static" else None
        layers = layer_set(n_layers, kind)
        changed = deconstruct(model, principle, layers, reference)
        with torch.no_grad(), changed(model):
            return float(model.module(text, labels=text).loss)

    with torch.no_grad():
        base = float(model.module(text, labels=text).loss)
    names = ("off", "uniform", "taylor", "key_scores", "static")
    everywhere = {name: nll(name, "uniform") for name in names}
    in_half = {name: nll(name, "hybrid") for name in names}
    for name in names:
        assert everywhere[name] > in_half[name] + 1 > base + 2, name
    assert max(everywhere, key=everywhere.__getitem__) == "off"
    assert max(in_half, key=in_half.__getitem__) == "off"
