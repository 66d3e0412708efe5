"""Whether a massive activation is a constant: its value over texts, and with BOS."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.probes.contributions import Look
from interp.probes.experiment import Progress
from interp.probes.reading import Bootstrap

if TYPE_CHECKING:
    from interp.models import Model

WITHOUT, WITH = "without", "with"
"""Along `bos`."""


def input_independence(
    model: "Model",
    texts: Sequence[str] | Mapping[str, str],
    cells: Sequence[tuple[int, int, int]],
    *,
    max_tokens: int | None = None,
    bootstrap: Bootstrap | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Mean and spread of cells of the residual stream over texts.

    A massive activation is nearly the same whatever the text: it works like a bias.

    Args:
        model: As `interp.load` returns it.
        texts: Two or more, each long enough for every cell's token.
        cells: Layer of the stream (0 is the embedding), token and channel of each, as
            `interp.interventions.SetActivations` takes them.
        max_tokens: Keep at most this many tokens; those after the last cell's do not
            matter where attention is causal.
        bootstrap: How intervals over texts are made.
        progress: Told of every run.

    Returns:
        Over `cell`, and over `bos` ("without", and "with" a token that begins texts in
        front, where the tokenizer has one): `mean`, `mean_interval` (bound), `sd`, `cv`
        (the sd over the mean's magnitude, without unit), and `value` (text). In the
        stream's own unit; the sd has n - 1 in its denominator.

    Raises:
        InputError: Fewer than two texts, no tokenizer, or a cell that is not there.

    Source:
        Sun et al. 2024 (arXiv:2402.17762), section 2.
    """
    named = texts if isinstance(texts, Mapping) else dict(enumerate(texts))
    tokenizer = model.tokenizer
    if len(named) < 2 or tokenizer is None or not cells:
        raise InputError(
            "The spread of cells over texts needs a tokenizer, two texts or more and "
            f"one cell or more; got {len(named)} texts, {len(cells)} cells and "
            f"{'no' if tokenizer is None else 'a'} tokenizer. Pass more."
        )
    bos = tokenizer.bos_token_id
    begins = {WITHOUT: []} if bos is None else {WITHOUT: [], WITH: [bos]}
    values = np.empty((len(cells), len(begins), len(named)))
    tokens = [token for _, token, _ in cells]
    for number, text in enumerate(named.values()):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for column, begin in enumerate(begins.values()):
            look = Look(model, [*begin, *ids], tokens, max_tokens)
            for row, (layer, token, channel) in enumerate(cells):
                values[row, column, number] = _value(look, layer, token, channel)
            if progress is not None:
                n_done = number * len(begins) + column + 1
                progress("texts", n_done, len(named) * len(begins))
    coords: dict[str, Any] = {
        "bos": np.array(list(begins), dtype=object),
        "text": np.array([str(name) for name in named], dtype=object),
    }
    for place, name in enumerate(("layer", "token", "channel")):
        coords[name] = "cell", [cell[place] for cell in cells]
    each = xr.DataArray(values, dims=("cell", "bos", "text"), coords=coords)
    how = bootstrap or Bootstrap()
    mean, sd = each.mean("text"), each.std("text", ddof=1)
    found = {
        "mean": (mean, "mean over texts", "activation"),
        "mean_interval": (
            how.interval(each, "text"),
            "mean over texts, interval",
            "activation",
        ),
        "sd": (sd, "standard deviation over texts", "activation"),
        "cv": (sd / abs(mean), "coefficient of variation over texts", "dimensionless"),
        "value": (each, "of each text", "activation"),
    }
    attrs = {
        "model": model.name,
        "n_texts": len(named),
        "interval": how.says(f"{len(named)} texts"),
        "source": "arXiv:2402.17762",
    }
    return xr.Dataset(
        {
            name: array.assign_attrs(units=unit, long_name=long_name)
            for name, (array, long_name, unit) in found.items()
        },
        attrs=attrs,
    )


def _value(look: Look, layer: int, token: int, channel: int) -> float:
    """The cell, refused where the stream has no such layer."""
    stream = look.stream(token, channel)
    if not 0 <= layer < len(stream):
        raise InputError(
            f"Layer {layer} of the residual stream was asked for; there are 0 (the "
            f"embedding) to {len(stream) - 1}. Choose one of them."
        )
    return float(stream[layer])
