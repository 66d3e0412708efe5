"""Recordings: read, made mono at the model's rate, and cut into the model's windows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from interp.errors import InputError, UnsupportedModelError
from interp.models import Model

SHORTEST = 0.02
"""Seconds below which there is nothing to hear."""


@dataclass(frozen=True, eq=False)
class Sound:
    """A recording.

    Attributes:
        samples: `[sample]`, float32, one channel, about -1 to 1.
        rate: Samples a second.
        name: What it is called in reports.
        begin: Where it begins in the recording that it is a stretch of, in seconds.
    """

    samples: np.ndarray
    rate: int
    name: str = "sound"
    begin: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be heard."""
        if self.samples.ndim != 1 or self.rate < 1:
            raise InputError(
                f"A sound has one channel and a rate; {self.name} has samples of shape "
                f"{self.samples.shape} at {self.rate} Hz. Pass [sample]."
            )
        if not np.isfinite(self.samples).all():
            raise InputError(
                f"{self.name} holds NaN or infinity in "
                f"{int((~np.isfinite(self.samples)).sum()):,} of {len(self.samples):,} "
                "samples. Record or convert it again."
            )
        if self.seconds < SHORTEST:
            raise InputError(
                f"{self.name} is {self.seconds:.3f} s long ({len(self.samples)} "
                f"samples); at least {SHORTEST} s are needed. Give a longer recording."
            )

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    def at(self, rate: int) -> "Sound":
        """The same at another rate, band-limited."""
        if rate == self.rate:
            return self
        common = int(np.gcd(rate, self.rate))
        samples = resample_poly(self.samples, rate // common, self.rate // common)
        return replace(self, samples=samples.astype(np.float32), rate=rate)


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a recording as a model reads it.

    Attributes:
        inputs: For the model's forward, such as `input_features` `[1, mel, frame]`.
        samples: `[sample]` at the model's rate, without padding.
        begin: Where it begins in the recording, in seconds.
        seconds: How long it is, without padding.
        rate: Samples a second.
    """

    inputs: dict[str, Any]
    samples: np.ndarray
    begin: float
    seconds: float
    rate: int


def read_sound(
    path: str | Path,
    begin: float = 0.0,
    seconds: float | None = None,
    longest: float | None = None,
) -> Sound:
    """A WAV, FLAC, OGG or MP3 file, or a stretch of it; several channels are averaged.

    Args:
        path: The file.
        begin: Where the stretch begins, in seconds.
        seconds: How long it is; to the end of the file for None.
        longest: Seconds that it may have; any number for None.

    Raises:
        InputError: There is no such file, it is no audio, it ends before `begin`, it is
            longer than `longest` (refused before it is read), or nothing can be heard.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Audio was to be read from {path}; there is no such file.")
    try:
        with soundfile.SoundFile(path) as file:
            rate, whole = file.samplerate, file.frames / file.samplerate
            start = file.seek(min(round(begin * rate), file.frames))
            frames = file.frames - start
            if seconds is not None:
                frames = min(round(seconds * rate), frames)
            require_length(path.name, frames / rate, longest)
            # Block by block: of many channels only their mean is ever held.
            blocks = file.blocks(rate, frames=frames, dtype="float32", always_2d=True)
            parts = [block.mean(axis=1) for block in blocks]
    except InputError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Audio was to be read from {path}; it is none that can be read "
            f"({' '.join(str(error).split())[:120]}). Give a WAV or FLAC file."
        ) from error
    if begin >= whole > 0:
        raise InputError(
            f"Audio was to be read from {path} at {begin:g} s; it is {whole:.1f} s "
            "long. Begin earlier."
        )
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return Sound(samples, rate, path.name, begin)


def require_length(name: str, seconds: float, longest: float | None) -> None:
    """Refuse what is too long.

    Raises:
        InputError: It is longer than `longest`.
    """
    if longest is not None and seconds > longest:
        raise InputError(
            f"{name} is {seconds:,.0f} s long; at most {longest:g} s are taken at "
            "once. Choose a stretch with --begin and --seconds, or "
            "read_sound(path, begin=..., seconds=...)."
        )


def windows(model: Model, sound: Sound) -> Iterator[Window]:
    """The recording as the model reads it: one window, or one after the other.

    Args:
        model: Of speech, with its feature extractor.
        sound: At any rate, of any length.

    Raises:
        UnsupportedModelError: The model reads no sound.
    """
    extractor: Any = model.extractor
    if extractor is None or not hasattr(extractor, "sampling_rate"):
        raise UnsupportedModelError(
            f"{model.name} was given sound; it has no feature extractor for sound. "
            "Choose a model of speech, such as whisper-base."
        )
    rate = int(extractor.sampling_rate)
    heard = sound.at(rate)
    size = getattr(extractor, "n_samples", None) or len(heard.samples)
    shortest = int(SHORTEST * rate)
    for start in range(0, len(heard.samples), size):
        samples = heard.samples[start : start + size]
        if start and len(samples) < shortest:
            return
        made = extractor(samples, sampling_rate=rate, return_tensors="pt")
        inputs = {
            name: value.to(model.device, model.dtype)
            if value.is_floating_point()
            else value.to(model.device)
            for name, value in made.items()
        }
        begin = sound.begin + start / rate
        yield Window(inputs, samples, begin, len(samples) / rate, rate)
