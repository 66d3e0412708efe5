import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import transformers as hf
import xarray as xr
from command_line import made, refused, run, save, says
from tiny_models import tiny, tiny_tokenizer

from interp.probes.crossattn import METHODS

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "bart")


def test_a_text_gives_page_tables_and_store_and_is_not_made_twice(folder, tmp_path):
    out = tmp_path / "out"
    asked = [folder, "w5 w9 w33", "--written", "w4 w9", "--out", out]
    asked = ["crossattn", *asked, "--methods", "gradient"]
    page = made(*asked)

    assert page == str(out / "index.html")
    table = pd.read_csv(out / "crossattn.csv")
    assert set(table["of"]) == {"all", "layer", "head", "head number", "explanation"}
    assert (out / "curves.csv").exists()
    assert not (out / "parts").exists()
    assert json.loads((out / "run.json").read_text())["finished"]
    assert says(run(*asked).err, "nothing was left to do")


def test_wrong_arguments_end_in_one_line_with_a_remedy(folder, tmp_path):
    assert says(
        refused("crossattn", folder, "w5", "--methods", "gradients"), "'gradient'"
    )
    assert says(refused("crossattn", folder, "gone.txt"), "does not exist")
    few = refused("crossattn", folder, "w5", "--segments", "1,9")
    assert says(few, "--segments takes whole numbers from 2 on")


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """A folder with a tiny Whisper that hears a second at a time."""
    folder = tmp_path_factory.mktemp("models") / "listener"
    config = tiny("whisper")[0].config
    config = hf.WhisperConfig(**{**config.to_dict(), "max_source_positions": 50})
    hf.WhisperForConditionalGeneration(config).save_pretrained(folder)
    hf.WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=1
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tone(seconds, channels=1):
    """`[sample, channel]`."""
    times = np.arange(int(seconds * RATE)) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * times)] * channels, axis=1)


def recording(path, samples, **how):
    soundfile.write(path, samples, RATE, **how)
    return path


BROKEN = {
    "empty": lambda p: p.write_bytes(b""),
    "no samples": lambda p: recording(p, np.zeros(0)),
    "one sample": lambda p: recording(p, np.zeros(1)),
    "NaN": lambda p: recording(p, np.full(RATE, np.nan), subtype="FLOAT"),
    "text": lambda p: p.write_text("Dear reader,\nthis is no sound.\n" * 50),
    "3 hours": lambda p: soundfile.write(p, np.zeros(3 * 3600 * 100), 100),
}


@pytest.mark.parametrize(
    ("what", "cause", "remedy"),
    [
        ("empty", "none that can be read", "Give a WAV or FLAC file"),
        ("no samples", "0 samples", "Give a longer recording"),
        ("one sample", "1 samples", "Give a longer recording"),
        ("NaN", "16,000 of 16,000", "Record or convert it again"),
        ("text", "none that can be read", "Give a WAV or FLAC file"),
        ("3 hours", "10,800 s long", "--begin and --seconds"),
    ],
)
def test_a_recording_that_cannot_be_compared_is_refused(
    listener, tmp_path, what, cause, remedy
):
    path = tmp_path / "a.wav"
    BROKEN[what](path)
    line = refused("crossattn", listener, path, "--out", tmp_path / "out")
    assert says(line, cause, remedy)


def test_all_methods_of_a_recording_stand_on_one_page(listener, tmp_path):
    path = recording(tmp_path / "a.wav", tone(0.5))
    asked = ["crossattn", listener, path, "--written", "w4 w9 w33 w5"]
    page = made(*asked, "--masks", 6, "--segments", "20", "--out", tmp_path / "out")
    html = Path(page).read_text(encoding="utf-8")
    for method in METHODS:
        assert method.replace("_", " ") in html
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert set(METHODS) < set(curves["explanation"])
    assert {f"{method}@states" for method in METHODS} < set(curves["explanation"])


def test_a_stretch_of_a_long_8_bit_recording_of_six_channels(listener, tmp_path):
    path = recording(tmp_path / "a.wav", tone(30, channels=6), subtype="PCM_U8")
    asked = ["crossattn", listener, path, "--begin", 20, "--seconds", 1]
    asked += ["--written", "w4 w9", "--methods", "gradient", "--no-faithfulness"]
    made(*asked, "--out", tmp_path / "out")
    tree = xr.open_datatree(tmp_path / "out" / "crossattn.zarr", consolidated=False)

    assert tree["utterance_0"].attrs["begin"] == 20
    assert tree["utterance_0"].attrs["seconds"] == 1
    assert tree.attrs["n_utterances"] == 1
    words = pd.read_csv(tmp_path / "out" / "words.csv")
    assert len(words) == tree["utterance_0/words"].sizes["word"]
    assert words["begin"].between(20, 21).all()
    assert says(
        refused("crossattn", listener, path, "--begin", 31), "30.0 s", "Begin earlier"
    )
