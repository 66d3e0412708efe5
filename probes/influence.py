"""How much of a text's loss hangs on some heads: AttentionInfluence."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads
from interp.interventions.log import Log, Scores
from interp.interventions.losses import Losses, Stretches, token_losses
from interp.probes.reading import Bootstrap
from interp.tasks.texts import stretches
from interp.uncertainty import BLOCKS

if TYPE_CHECKING:
    from interp.models import Model

Progress = Callable[[int, int], None]
"""Called with the tokens that are done, and of how many."""

WINDOW = 2048
"""Tokens that are read at once; the paper reads 4,096."""
AT_ONCE = 1024
"""Texts whose intervals are made at a time."""

BASE, REFERENCE = "none", "heads"
"""Runs of a text: of the model as it is, and with the heads masked."""

SOURCE = (
    "AttentionInfluence (arXiv:2505.07293), equation 5. The paper writes 1 / L for "
    "masked weights; here they are equal over the keys that a query sees, 1 / (i + 1) "
    "under a causal mask, less under a window, and a learned sink keeps its logit"
)


def attention_influence(
    model: "Model",
    texts: Mapping[str, str],
    heads: HeadSet,
    *,
    controls: int = 0,
    window: int = WINDOW,
    max_tokens: int | None = None,
    seed: int = 0,
    bootstrap: Bootstrap | None = None,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Relative rise of each text's loss when some heads look everywhere alike.

    A masked head weighs all keys that a query sees alike, in all rows. What the rise
    means depends on the kind of text: compare within one domain only.

    A text that is longer than a window is cut into windows of equal length, to a
    token. Each is read on its own, so that nothing is retrieved across a cut; its first
    token, which nothing predicts, is left out.

    Args:
        model: A decoder-only language model with a tokenizer.
        texts: By name; equal texts are run once and get equal numbers.
        heads: What is masked; in the paper the 5 % with the highest retrieval score.
        controls: Times that as many other heads of the same layers are drawn and
            masked instead.
        window: Tokens that are read at once; fewer where the context is shorter.
        max_tokens: Keep at most this many tokens of each text.
        seed: Of the first draw; each further one takes the next.
        bootstrap: How intervals are made, over 8 stretches of a text's tokens.
        out: File that grows by a line a text. A run that was killed goes on from there
            to the same bits.
        resume: Go on with `out`; False starts anew.
        progress: Called at the beginning and after each text.

    Returns:
        Over `text`: `influence` and `influence_interval` (bound), fractions of `nll`;
        `nll` and `nll_ref`, without and with the mask, in nats per token; `tokens`,
        those that are predicted. `control` (draw) is the influence of the heads in the
        coordinate `drawn`, `control_interval` (draw, bound) its interval. Intervals are
        NaN where there are less than two predicted tokens.

    Raises:
        InputError: No text, one of fewer than two tokens, a window that leaves nothing
            to predict, or heads that have too few others in their layers.
        UnsupportedModelError: No decoder-only language model.
        StorageError: `out` holds other results, or cannot be written.

    Source:
        AttentionInfluence (arXiv:2505.07293), equation 5; see `SOURCE`.
    """
    if not texts or window < 4 or controls < 0:
        raise InputError(
            "The influence of heads needs at least one text, windows of 4 tokens or "
            f"more, and 0 or more controls; got {len(texts)} texts, window={window}, "
            f"controls={controls}. The usual window is {WINDOW}."
        )
    drawn = {each: heads.random_like(each) for each in range(seed, seed + controls)}
    masked = {REFERENCE: heads} | {f"draw {n}": each for n, each in drawn.items()}
    cut = {
        name: tuple(stretches(model, name, text, window, max_tokens))
        for name, text in texts.items()
    }
    sums = block_sums(model, set(cut.values()), masked, out, resume, progress)
    table = _table(cut, sums, len(masked), bootstrap or Bootstrap(seed=seed))
    names = np.array([*map(str, drawn.values())], dtype=object)
    seeds = {"draw": np.array([*drawn], dtype=int), "drawn": ("draw", names)}
    attrs = {"model": model.name, "model_hash": model.content_hash}
    attrs |= {"heads": str(heads), "window": window, "source": SOURCE}
    return table.assign_coords(seeds).assign_attrs(attrs)


def block_sums(
    model: "Model",
    texts: set[Stretches],
    masked: Mapping[str, HeadSet],
    out: Path | str | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> dict[Stretches, np.ndarray]:
    """Sums of losses of every text, as the model is and under each mask.

    Args:
        model: A decoder-only language model.
        texts: As `interp.tasks.texts.stretches` cuts them.
        masked: Heads of each run, by its name.
        out: As `attention_influence` takes it.
        resume: The same.
        progress: The same.

    Returns:
        `[1 + masked, block]` in nats, over contiguous tokens.
    """
    names, keys = [BASE, *masked], {text: _digest(text) for text in texts}
    identity: dict[str, Any] = {
        "model_hash": model.content_hash,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "torch": torch.__version__,
        "masked": {name: str(heads) for name, heads in masked.items()},
    }
    log = Log(None if out is None else Path(out), identity, resume)
    done = {text for text in texts if (keys[text], BASE) in log.results}
    n_done, n_tokens = (sum(map(_n_scored, some)) for some in (done, texts))
    edits = [AblateHeads(heads, "uniform") for heads in masked.values()]
    tell = progress or (lambda done, total: None)
    tell(n_done, n_tokens)
    try:
        with closing(token_losses(model, texts, edits, done)) as found:
            for text, losses in found:
                if text in done:
                    continue
                log.add(keys[text], dict(zip(names, _by_block(losses), strict=True)))
                n_done += _n_scored(text)
                tell(n_done, n_tokens)
    finally:
        log.close()
    return {
        text: np.array([[*log.results[key, name].values()] for name in names])
        for text, key in keys.items()
    }


def _table(
    cut: Mapping[str, Stretches],
    sums: Mapping[Stretches, np.ndarray],
    n_masked: int,
    bootstrap: Bootstrap,
) -> xr.Dataset:
    """The labelled numbers of every text."""
    nats = np.full((len(cut), 1 + n_masked, BLOCKS), np.nan)
    for row, text in enumerate(cut.values()):
        own = sums[text]
        nats[row, :, : own.shape[1]] = own
    base = xr.DataArray(nats[:, 0], dims=("text", "block"))
    reference = xr.DataArray(nats[:, 1:], dims=("text", "run", "block"))
    influence = (reference.sum("block") - base.sum("block")) / base.sum("block")
    # A ratio of sums is the mean of the blocks' ratios, weighted by their base.
    ratio = ((reference - base) / base).where(base > 0)
    bounds = xr.concat(
        [
            bootstrap.interval(
                ratio.isel(text=some), "block", base.isel(text=some).fillna(0)
            )
            for some in (slice(k, k + AT_ONCE) for k in range(0, len(cut), AT_ONCE))
        ],
        "text",
    )
    tokens = xr.DataArray([_n_scored(text) for text in cut.values()], dims="text")
    own, others = {"run": 0}, {"run": slice(1, None)}
    arrays = {
        "nll": base.sum("block") / tokens,
        "nll_ref": reference.isel(own).sum("block") / tokens,
        "influence": influence.isel(own),
        "influence_interval": bounds.isel(own),
        "tokens": tokens,
        "control": influence.isel(others).rename(run="draw"),
        "control_interval": bounds.isel(others).rename(run="draw"),
    }
    labelled = {
        name: array.assign_attrs(units=units, long_name=long_name)
        for (name, array), (units, long_name) in zip(
            arrays.items(), _SAID.values(), strict=True
        )
    }
    how = bootstrap.says(f"{BLOCKS} stretches of tokens")
    table = xr.Dataset(labelled, {"text": np.array([*cut], dtype=object)})
    return table.assign_attrs(interval=how)


_SAID = {
    "nll": ("nats", "negative log-likelihood per token"),
    "nll_ref": ("nats", "negative log-likelihood per token, heads masked"),
    "influence": ("fraction", "relative rise of the loss, heads masked"),
    "influence_interval": ("fraction", "relative rise of the loss, interval"),
    "tokens": ("tokens", "tokens that are predicted"),
    "control": ("fraction", "relative rise of the loss, random heads masked"),
    "control_interval": ("fraction", "the same of random heads, interval"),
}
"""Unit and long name of everything that is told of a text."""


def _by_block(losses: Losses) -> list[Scores]:
    """Sums over contiguous tokens, of every run, as a file can keep them."""
    parts = np.array_split(losses, min(BLOCKS, losses.shape[1]), axis=1)
    sums = np.stack([part.sum(1) for part in parts], 1)
    return [{str(n): float(value) for n, value in enumerate(row)} for row in sums]


def _n_scored(text: Stretches) -> int:
    return sum(len(stretch) - 1 for stretch in text)


def _digest(text: Stretches) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()
