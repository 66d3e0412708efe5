import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tiny

import interp
from interp.audio import Sound, read_sound, windows
from interp.errors import InputError, UnsupportedModelError

RATE = 16_000


def tone(seconds, rate=RATE, pitch=440.0):
    return np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def listener():
    """A tiny Whisper that hears 0.4 s at a time."""
    from transformers import WhisperFeatureExtractor

    module = tiny("whisper")[0]
    model = interp.load(module)
    seconds = module.config.max_source_positions * 2 / 100
    extractor = WhisperFeatureExtractor(feature_size=10, chunk_length=seconds)
    extractor.n_samples = int(seconds * RATE)
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    object.__setattr__(model, "extractor", extractor)
    return model


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_file_of_any_width_and_any_channels_is_read(tmp_path, subtype, channels):
    path = tmp_path / "a.wav"
    given = np.stack([0.5 * tone(0.3)] * channels, axis=1)
    soundfile.write(path, given, RATE, subtype=subtype)
    sound = read_sound(path)

    assert (sound.rate, sound.name) == (RATE, "a.wav")
    assert sound.samples.shape == (4800,)
    step = 1 / 128 if subtype == "PCM_U8" else 2**-15
    assert np.abs(sound.samples - given[:, 0]).max() <= step


def test_flac_is_read(tmp_path):
    soundfile.write(tmp_path / "a.flac", 0.5 * tone(0.3), RATE)
    assert read_sound(tmp_path / "a.flac").seconds == pytest.approx(0.3)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_pitch_stays_when_the_rate_changes(rate):
    sound = Sound(tone(0.5, rate).astype(np.float32), rate).at(RATE)
    spectrum = np.abs(np.fft.rfft(sound.samples))
    pitch = spectrum.argmax() / sound.seconds

    assert sound.rate == RATE
    assert sound.seconds == pytest.approx(0.5, abs=0.01)
    assert pitch == pytest.approx(440, abs=4)


def test_what_cannot_be_heard_is_refused_by_its_cause(tmp_path):
    text = tmp_path / "letter.wav"
    text.write_text("Dear reader,\nthis is no sound.\n" * 50)
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    silent = tmp_path / "short.wav"
    soundfile.write(silent, np.zeros(1), RATE)
    none = tmp_path / "none.wav"
    soundfile.write(none, np.zeros(0), RATE)
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.full(RATE, np.nan), RATE, subtype="FLOAT")
    for path, cause in (
        (tmp_path / "gone.wav", "no such file"),
        (tmp_path, "no such file"),
        (text, "none that can be read"),
        (empty, "none that can be read"),
        (silent, "1 samples"),
        (none, "0 samples"),
        (broken, "16,000 of 16,000"),
    ):
        with pytest.raises(InputError, match=cause):
            read_sound(path)


def test_what_is_too_long_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(3 * 3600 * 100, np.float32), 100)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="10,800 s long"):
            read_sound(path, longest=120)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6  # of 4.3 MB of samples
    with pytest.raises(InputError, match="121 s long"):
        read_sound(path, begin=10_679, longest=120)
    assert read_sound(path, begin=10_680, longest=120).seconds == 120
    assert read_sound(path, seconds=120, longest=120).seconds == 120
    short = tmp_path / "b.wav"
    soundfile.write(short, np.zeros(1303, np.float32), 10)
    assert read_sound(short, begin=10.3, longest=120).seconds == 120


def test_a_long_sound_comes_in_windows_that_lie_side_by_side(listener):
    sound = Sound(tone(1.0).astype(np.float32), RATE)
    found = list(windows(listener, sound))

    assert [round(each.begin, 3) for each in found] == [0.0, 0.4, 0.8]
    assert sum(each.seconds for each in found) == pytest.approx(1.0)
    whole = np.concatenate([each.samples for each in found])
    np.testing.assert_array_equal(whole, sound.samples)
    for each in found:
        assert each.inputs["input_features"].shape == (1, 10, 40)
        trace = interp.trace(listener, each.inputs)
        assert set(trace.children) >= {"self", "cross", "encoder"}


def test_windows_are_made_as_they_are_asked_for(listener):
    hours = np.broadcast_to(np.float32(0.1), 3 * 3600 * RATE)
    first = next(windows(listener, Sound(hours, RATE)))
    assert first.seconds == pytest.approx(0.4)


def test_a_model_of_text_hears_nothing():
    model = interp.load(tiny("llama")[0])
    with pytest.raises(UnsupportedModelError, match="whisper-base"):
        next(windows(model, Sound(tone(1.0).astype(np.float32), RATE)))


@pytest.mark.real
def test_whisper_base_hears_the_words(whisper, beckett):
    [window] = windows(whisper, read_sound(beckett))
    with torch.no_grad():
        heard = whisper.module.generate(
            window.inputs["input_features"], language="en", task="transcribe"
        )
    text = whisper.tokenizer.decode(heard[0], skip_special_tokens=True)

    assert window.seconds == pytest.approx(9.96, abs=0.01)
    assert text.strip() == (
        "Never tried, ever failed. No matter. Try again. Fail again. Fail better."
    )
