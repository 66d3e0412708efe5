"""Utterances of tiny models: speech, text to text, and decoders alone."""

from functools import cache

import numpy as np
import torch
import transformers as hf
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.audio import Sound
from interp.probes.crossattn.forced import Forced
from interp.probes.crossattn.utterances import utterances

RATE, SECONDS = 16_000, 0.4
READ, WRITTEN = "w5 w9 w33 w40 w7 w8 w60", "w4 w9 w10 w11"

SMALL = {
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
STACKS = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}


@cache
def listener(dtype=torch.float32):
    """A tiny Whisper that hears 0.4 s at a time."""
    module = tiny("whisper")[0].to(dtype)
    model = interp.load(module, tokenizer=tiny_tokenizer())
    extractor = hf.WhisperFeatureExtractor(feature_size=10, chunk_length=SECONDS)
    extractor.n_samples = int(SECONDS * RATE)
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    object.__setattr__(model, "extractor", extractor)
    return model


def marian():
    """Translation of a family that scales its embeddings outside of the table."""
    config = hf.MarianConfig(**SMALL, **STACKS, scale_embedding=True)
    return interp.load(hf.MarianMTModel(config).eval(), tokenizer=tiny_tokenizer())


def moonshine():
    """Speech read from samples, with rotary positions."""
    config = hf.MoonshineConfig(
        **SMALL,
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
    )
    module = hf.MoonshineForConditionalGeneration(config).eval()
    return _of_samples(module)


def speecht5():
    """Speech read from samples, by attention that calls no interface."""
    config = hf.SpeechT5Config(
        **SMALL,
        hidden_size=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        conv_dim=(16, 16),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    return _of_samples(hf.SpeechT5ForSpeechToText(config).eval())


def _of_samples(module):
    model = interp.load(module, tokenizer=tiny_tokenizer())
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    object.__setattr__(model, "extractor", extractor)
    return model


def sound(seconds=0.3, seed=0):
    """A tone that comes and goes, in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * 440 * time) * (np.sin(20 * time) > 0)
    noise = 0.05 * rng.standard_normal(len(time))
    return Sound((0.5 * tone + noise).astype(np.float32), RATE, "tone")


def heard(dtype=torch.float32):
    """A teacher-forced utterance of the tiny Whisper."""
    return tiny_case("whisper", dtype)


def tiny_case(family, dtype=torch.float32):
    """A teacher-forced utterance of a tiny model."""
    if family == "whisper":
        model, given, text = listener(dtype), sound(), WRITTEN
    else:
        module = tiny(family)[0].to(dtype)
        model = interp.load(module, tokenizer=tiny_tokenizer())
        given, text = READ, None if family == "llama" else WRITTEN
    [utterance] = utterances(model, given, text=text)
    return Forced(model, utterance)
