"""What a model expects next: as its logits say, and in little memory."""

import torch
import transformers as hf
from tolerance import assert_as_precise

import interp
from interp.memory import frugal
from interp.peak import peak_memory
from interp.predictions import CHUNK, expectations

VOCAB, N_TOKENS, WIDTH = 20_000, 4096, 16


def wide():
    """A tiny model with many words."""
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=N_TOKENS,
    )
    return interp.load(hf.LlamaForCausalLM(config).eval())


def dense(model, states, tokens, kind):
    """Both measures from all logits."""
    with torch.no_grad():
        log_p = model.module.lm_head(states).to(kind).log_softmax(-1)
    nll = -log_p[torch.arange(len(tokens)), tokens]
    return {"entropy": -(log_p.exp() * log_p).sum(-1), "nll": nll}


def test_logits_of_a_long_text_are_never_held_together_nor_leave_holes():
    model = wide()
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(N_TOKENS, WIDTH, generator=draw)
    tokens = torch.randint(VOCAB, (N_TOKENS,), generator=draw).tolist()
    expectations(model, states[:9], tokens[:9])  # first calls set up threads
    with peak_memory() as peak, frugal():
        found = expectations(model, states, tokens)

    n_chunks = N_TOKENS // (CHUNK // VOCAB)
    assert n_chunks > 15
    assert peak.n_bytes < 5 * CHUNK * 4  # logits, their exponentials, and some room
    for name, values in found.items():
        truth, twin = (
            dense(model, states[:50], tokens[:50], kind)[name]
            for kind in (torch.float64, torch.float32)
        )
        ours = torch.from_numpy(values[:50]).float()
        assert_as_precise(ours, truth, twin, name=name)
