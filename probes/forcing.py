"""Forcing another token, and how much of what follows stays: at anchors and elsewhere.

Where a token has much influence on later ones, another in its place should change what
follows more than at a place that is like it but for its influence.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from interp.errors import InputError
from interp.forward import evaluating
from interp.generation import generation_config
from interp.inputs import prepare
from interp.probes.content_words import content_words, jaccard
from interp.probes.experiment import Progress
from interp.probes.horizons import Horizon, label
from interp.probes.memo import remembered
from interp.probes.preplan import rhythm
from interp.probes.reading import Bootstrap
from interp.probes.rhythm import Rhythm
from interp.tasks.items import Item

if TYPE_CHECKING:
    from interp.models import Model

TITLES = {
    "jaccard": {"units": "fraction", "long_name": "content words that stay"},
    "unforced": {"units": "fraction", "long_name": "content words that stay unforced"},
    "fai": {"units": "fraction", "long_name": "future attention influence"},
    "token": {"units": "index", "long_name": "place in the response"},
}
LEVELS = np.array(["high", "low"], dtype=object)
SOURCE = (
    "arXiv:2510.13554, perturbation at high and low FAI; here places are matched by "
    "position, the token that was there is no alternative, and words are compared from "
    "the first whole one behind it"
)


@dataclass(frozen=True)
class ForcedTokens:
    """Greedy continuations of alternatives, at tokens of high FAI and of low FAI."""

    alternatives: int = 5
    """Tokens forced at a place: the likeliest but the one that is there."""
    n_tokens: int = 50
    """Of a continuation; places have as many tokens behind them."""
    pairs: int = 5
    """Places of each level in a chain, at most: those nearest to each other."""
    share: float = 0.2
    """Share of tokens that are high, and of those that are low."""
    horizon: Horizon = (10, 100)
    """Of FAI."""
    seed: int = 0
    """Decides which of equally near places are taken."""
    options: Rhythm = field(default_factory=Rhythm)
    """How FAI is measured; its horizons are not used."""

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to compare."""
        if min(self.alternatives, self.n_tokens, self.pairs) < 1 or not (
            0 < self.share <= 0.5
        ):
            raise InputError(
                "Forcing needs alternatives, tokens and pairs, one at least, and a "
                f"share up to a half; got {self.alternatives}, {self.n_tokens}, "
                f"{self.pairs} and {self.share}. Usual are 5, 50, 5 and 0.2."
            )

    def run(
        self,
        model: "Model",
        items: Sequence[Item],
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """Forces tokens in every chain.

        Args:
            model: A decoder-only language model with a tokenizer.
            items: Chains, as `rhythm` takes them.
            folder: Where finished places are kept, so that a run can go on.
            bootstrap: How the interval is made: over chains, or over the pairs of a
                single one.
            progress: Told of every place.

        Returns:
            Over (pair, level): `jaccard` with the original continuation, its mean over
            alternatives; `unforced`, the same of the greedy continuation of the token
            that was there; `fai`, `token`, `token_text`. Over `unit` (chains or pairs)
            `difference`, high less low; attributes give its mean, `interval_low` and
            `interval_high`, `share_lower` and the sign test's `p`.

        Raises:
            InputError: No chain has places to compare, or there is no tokenizer.
            UnsupportedModelError: The model is no decoder-only language model.
        """
        if model.tokenizer is None:
            raise InputError(
                f"Words of continuations are compared; {model.name} came without a "
                "tokenizer. Pass tokenizer=..., when it is loaded."
            )
        jobs = self._jobs(model, items)
        if not jobs:
            raise InputError(
                f"Tokens are forced where {self.n_tokens} follow and FAI is known; "
                "no chain has enough such places. Use longer chains, or fewer n_tokens."
            )
        found = []
        for done, job in enumerate(jobs):
            if progress is not None:
                progress("forcing", done, len(jobs))
            ids, at = job.item.ids, job.item.scored[0] + job.place
            identity = ["forcing", self.alternatives, self.n_tokens, at, ids]
            work = partial(self._force, model, ids, at)
            found.append(remembered(folder, model, identity, work))
        if progress is not None:
            progress("forcing", len(jobs), len(jobs))
        pairs = _pairs(jobs, found)
        return self._compared(pairs, bootstrap or Bootstrap())

    def places(self, fai: Float[np.ndarray, " token"]) -> Int[np.ndarray, "pair level"]:
        """Places of high and of low FAI, two that are near each other in a pair.

        Args:
            fai: Over the tokens of a response; NaN where it is not known.
        """
        able = np.isfinite(fai) & (np.arange(len(fai)) < len(fai) - self.n_tokens)
        order = np.flatnonzero(able)[np.argsort(-fai[able], kind="stable")]
        n_each = int(self.share * len(order))
        high, low = np.sort(order[:n_each]), np.sort(order[len(order) - n_each :])
        apart = abs(high[:, None] - low)
        rows, columns = linear_sum_assignment(apart)
        tied = np.random.default_rng(self.seed).random(len(rows))
        best = np.lexsort((tied, apart[rows, columns]))[: self.pairs]
        return np.stack([high[rows[best]], low[columns[best]]], axis=1)

    def _jobs(self, model: "Model", items: Sequence[Item]) -> list["_Job"]:
        """Every place where tokens are forced; those of a pair follow each other."""
        options = replace(self.options, horizons=(self.horizon,))
        curves = rhythm(model, items, options)
        jobs = []
        for item, chain in zip(items, curves["fai"].values[:, 0], strict=True):
            fai = chain[: len(item.ids) - item.scored[0]]
            for place in self.places(fai).ravel().tolist():
                jobs.append(_Job(item, place, float(fai[place])))
        return jobs

    def _force(self, model: "Model", ids: Sequence[int], at: int) -> dict[str, Any]:
        """Likeness of what follows each alternative to what followed the token."""
        tokenizer: Any = model.tokenizer
        module: Any = model.module
        prompt = torch.tensor([ids[:at]], device=model.device)
        with torch.no_grad(), evaluating(module):
            read = module(prompt, use_cache=True, logits_to_keep=1)
            ranked = read.logits[0, -1].topk(self.alternatives + 1).indices.tolist()
            others = [each for each in ranked if each != ids[at]][: self.alternatives]
            forced = torch.tensor([ids[at], *others], device=model.device)[:, None]
            cache = read.past_key_values
            cache.batch_repeat_interleave(len(forced))
            given = torch.cat([prompt.expand(len(forced), -1), forced], dim=1)
            config = generation_config(
                model, prepare(model, list(ids[: at + 1])), self.n_tokens, {}
            )
            written = module.generate(
                given,
                attention_mask=torch.ones_like(given),
                past_key_values=cache,
                generation_config=config,
            )[:, at + 1 :]

        def words(tokens: list[int]) -> frozenset[str]:
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            return content_words(re.sub(r"^\w+", "", text))

        original = words(list(ids[at + 1 : at + 1 + self.n_tokens]))
        alike = [jaccard(words(row.tolist()), original) for row in written]
        known = [None if np.isnan(each) else each for each in alike]  # JSON has no NaN
        text = tokenizer.decode([ids[at]])
        return {"unforced": known[0], "alike": known[1:], "token_text": text}

    def _compared(self, pairs: xr.Dataset, bootstrap: Bootstrap) -> xr.Dataset:
        """What each chain says, and how sure that is."""
        high, low = (pairs["jaccard"].sel(level=each, drop=True) for each in LEVELS)
        several = len(set(pairs["chain"].values)) > 1
        units = (high - low).groupby("chain").mean() if several else high - low
        units = units.rename({str(units.dims[0]): "unit"}).dropna("unit")
        what = "chains" if several else "pairs"
        lower, unequal = int((units < 0).sum()), int((units != 0).sum())
        bounds = bootstrap.interval(units, "unit")
        titles = {"units": "fraction", "long_name": "Jaccard at high less at low FAI"}
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        del options["options"], options["horizon"]
        return pairs.assign(difference=units.assign_attrs(titles)).assign_attrs(
            mean_difference=float(units.mean()),
            interval_low=float(bounds.sel(bound="low")),
            interval_high=float(bounds.sel(bound="high")),
            interval=bootstrap.says(f"{units.size} {what}"),
            share_lower=lower / unequal if unequal else np.nan,
            p=float(binomtest(lower, unequal).pvalue) if unequal else np.nan,
            test=f"sign test over {unequal} {what} that differ",
            horizon=label(self.horizon),
            options=json.dumps(options),
            source=SOURCE,
        )


@dataclass(frozen=True)
class _Job:
    """A place where tokens are forced."""

    item: Item
    place: int
    fai: float


def _pairs(jobs: Sequence[_Job], found: Sequence[dict[str, Any]]) -> xr.Dataset:
    """What was found, the high place and the low one of a pair side by side."""
    columns = {
        "jaccard": [_mean(each["alike"]) for each in found],
        "unforced": [_mean([each["unforced"]]) for each in found],
        "fai": [job.fai for job in jobs],
        "token": [job.place for job in jobs],
    }
    dims = "pair", "level"
    texts = np.array([each["token_text"] for each in found], dtype=object)
    chains = np.array([job.item.name for job in jobs[::2]], dtype=object)
    arrays = {
        name: (dims, np.reshape(values, (-1, 2)), TITLES[name])
        for name, values in columns.items()
    }
    return xr.Dataset(
        arrays | {"token_text": (dims, texts.reshape(-1, 2))},
        {"level": LEVELS, "chain": ("pair", chains)},
    )


def _mean(values: Sequence[float | None]) -> float:
    """Of those that there are."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else np.nan
