"""Sound that a page can play, without a network."""

import base64
import io
import wave

import numpy as np
from jaxtyping import Float
from markupsafe import Markup


def player(
    samples: Float[np.ndarray, " sample"], rate: float, name: str, label: str
) -> Markup:
    """An audio element that holds its sound, 16 bits a sample.

    The page's policy has to allow it: `media-src data:`.

    Args:
        samples: Between -1 and 1; louder ones are cut.
        rate: Samples a second.
        name: Id of the element.
        label: What is heard, for those who do not see it.
    """
    sound = np.clip(np.nan_to_num(samples), -1, 1)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(round(rate))
        out.writeframes((sound * 32767).astype("<i2").tobytes())
    data = base64.b64encode(file.getvalue()).decode()
    return Markup(
        '<audio id="{}" class="player" controls preload="metadata" aria-label="{}" '
        'src="data:audio/wav;base64,{}"></audio>'
    ).format(name, label, data)
