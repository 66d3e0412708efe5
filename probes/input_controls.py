"""Sinks by kind of input: natural text, random tokens, one token repeated, and BOS."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.capture import Capture
from interp.errors import InputError
from interp.kernels.definitions import Received
from interp.probes.experiment import Progress
from interp.probes.reading import Bootstrap
from interp.probes.sinks import EPSILON, sink_metric
from interp.tasks.reading import shipped
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model

KINDS = ("natural", "random", "repeated")
"""Windows of text; tokens drawn from the vocabulary; one drawn token throughout."""

N_TOKENS, N_SEQUENCES = 64, 100
"""Tokens of a sequence, and sequences of a kind, as in arXiv:2410.10781."""

BATCH = 20
"""Sequences that are traced together."""

Rows = list[tuple[int, ...]]
"""Token ids of sequences that are equally long."""


def sink_controls(
    model: "Model",
    texts: str | Sequence[str] | Mapping[str, str] | None = None,
    *,
    n_tokens: int = N_TOKENS,
    n_sequences: int = N_SEQUENCES,
    epsilon: float = EPSILON,
    batch: int = BATCH,
    seed: int = 0,
    bootstrap: Bootstrap | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The sink metric of the first token on inputs of different kinds.

    A sink that needs meaning is lost on random tokens; one that needs a special token
    is lost without it; one that needs the first token's state to differ is lost where
    one token repeats, unless positions alone make the states differ. With a token that
    begins texts (BOS) in front, each sequence drops its last token: all are equally
    long.

    Args:
        model: As `interp.load` returns it.
        texts: Cut into windows that do not overlap; None is the shipped text.
        n_tokens: Of each sequence.
        n_sequences: Of each kind; fewer windows where the texts have no more.
        epsilon: Received mass above which the first token is a sink.
        batch: Sequences that are traced together.
        seed: Of the windows and tokens that are drawn.
        bootstrap: How intervals over sequences are made.
        progress: Told of every batch.

    Returns:
        `sink_metric` (kind, bos), % of heads; `sink_metric_interval` (kind, bos,
        bound); `sink_metric_sequences` (kind, bos, sequence), NaN where there are
        fewer windows. Where the tokenizer has a BOS token also `bos_effect` (kind),
        with it minus without it on the same sequences, in percentage points, with
        interval and sequences likewise.

    Raises:
        InputError: The model has no tokenizer, no text fills one window, or a number
            makes no sense.

    Source:
        Gu et al. (arXiv:2410.10781), Sink_0^epsilon.
    """
    if n_tokens < 2 or n_sequences < 1 or batch < 1:
        raise InputError(
            "Controls need sequences of 2 tokens or more, at least one of them, in "
            f"batches of at least one; got n_tokens={n_tokens}, n_sequences="
            f"{n_sequences}, batch={batch}. The usual ones are {N_TOKENS}, "
            f"{N_SEQUENCES} and {BATCH}."
        )
    rows, bos = _sequences(model, texts, n_tokens, n_sequences, seed)
    with_bos = {False: None} if bos is None else {False: None, True: bos}
    n_rows = sum(map(len, rows.values())) * len(with_bos)
    values = np.full((len(KINDS), len(with_bos), n_sequences), np.nan)
    n_done = 0
    for place, kind in enumerate(KINDS):
        for column, first in enumerate(with_bos.values()):
            own = rows[kind]
            if first is not None:
                own = [(first, *row[:-1]) for row in own]
            for begin in range(0, len(own), batch):
                part = own[begin : begin + batch]
                found = _metric(model, part, epsilon)
                values[place, column, begin : begin + len(part)] = found
                n_done += len(part)
                if progress is not None:
                    progress(kind, n_done, n_rows)
    each = xr.DataArray(
        values,
        dims=("kind", "bos", "sequence"),
        coords={
            "kind": np.array(KINDS, dtype=object),
            "bos": list(with_bos),
            "sequence": np.arange(n_sequences),
        },
    )
    how = bootstrap or Bootstrap()
    return _summary(each, how).assign_attrs(
        model=model.name,
        n_tokens=n_tokens,
        n_windows=len(rows["natural"]),
        epsilon=epsilon,
        key=0,
        seed=seed,
        bos="none" if bos is None else bos,
        interval=how.says("sequences"),
        source="arXiv:2410.10781",
    )


def _sequences(
    model: "Model",
    texts: str | Sequence[str] | Mapping[str, str] | None,
    n_tokens: int,
    n_sequences: int,
    seed: int,
) -> tuple[dict[str, Rows], int | None]:
    """Sequences of every kind, without BOS, and the BOS token if there is one."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(
            f"Windows of text were to be cut; {model.name} came without a tokenizer. "
            "Pass tokenizer=... to interp.load."
        )
    rng = np.random.default_rng(seed)
    windows = list(_windows(model, shipped() if texts is None else texts, n_tokens))
    if not windows:
        raise InputError(
            f"A window of {n_tokens} tokens was asked for; no text has so many. Give "
            "a longer text, or a smaller n_tokens."
        )
    chosen = rng.permutation(len(windows))[:n_sequences]
    size = min(model.anatomy.vocab_size or len(tokenizer), len(tokenizer))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    allowed = np.setdiff1d(np.arange(size), [*special])
    random = rng.choice(allowed, size=(n_sequences, n_tokens))
    repeated = np.repeat(rng.choice(allowed, size=(n_sequences, 1)), n_tokens, axis=1)
    rows = {
        "natural": [windows[index] for index in chosen],
        "random": [tuple(row) for row in random.tolist()],
        "repeated": [tuple(row) for row in repeated.tolist()],
    }
    bos: Any = tokenizer.bos_token_id
    return rows, bos


def _windows(
    model: "Model", texts: str | Sequence[str] | Mapping[str, str], n_tokens: int
) -> Iterator[tuple[int, ...]]:
    """Stretches of the texts' tokens, without what the tokenizer puts in front."""
    tokenizer = model.tokenizer
    assert tokenizer is not None, "checked by the caller"
    texts = [texts] if isinstance(texts, str) else texts
    for text in texts.values() if isinstance(texts, Mapping) else texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for begin in range(0, len(ids) - n_tokens + 1, n_tokens):
            yield tuple(ids[begin : begin + n_tokens])


def _metric(model: "Model", rows: Rows, epsilon: float) -> np.ndarray:
    """The metric of each sequence."""
    capture = Capture((Received(),), edges=None, residual=False)
    traced = trace(model, rows, capture=capture)
    return sink_metric(traced, epsilon=epsilon, each_text=True).values


def _summary(each: xr.DataArray, bootstrap: Bootstrap) -> xr.Dataset:
    """Means over sequences, and what BOS changes, with intervals."""
    parts = {"sink_metric": (each, "% of heads", "Sink metric of the first token")}
    if each.sizes["bos"] > 1:
        change = each.sel(bos=True, drop=True) - each.sel(bos=False, drop=True)
        parts["bos_effect"] = change, "percentage points", "what BOS changes"
    found = {}
    for name, (values, units, title) in parts.items():
        made = {
            name: (values.mean("sequence"), title),
            f"{name}_interval": (
                bootstrap.interval(values, "sequence"),
                f"{title}, interval",
            ),
            f"{name}_sequences": (values, f"{title}, of each sequence"),
        }
        for key, (array, long_name) in made.items():
            found[key] = array.assign_attrs(units=units, long_name=long_name)
    return xr.Dataset(found)
