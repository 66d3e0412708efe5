"""Claims on attention sinks: at the first token, and at later ones."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.capture import Capture
from interp.kernels.definitions import Received
from interp.probes.content_words import FUNCTION_WORDS
from interp.probes.detector import statistic
from interp.probes.experiment import Progress
from interp.probes.input_controls import sink_controls
from interp.probes.replications.claim import Claim, Evidence, told
from interp.probes.sinks import ACT_FIXED, EPSILON, SinkTokens, are_sinks
from interp.tasks.texts import Texts
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class FirstTokenSinks(Claim):
    """Gu et al. 2024: most heads attend to the first token, whatever it is."""

    n_sequences: int = 20
    """Of each kind."""
    n_tokens: int = 64
    """Of each sequence."""

    name = "first_token_sinks"
    statement = (
        "The first token is an attention sink of most heads, in most layers and "
        "whatever the text means; not where one token is repeated."
    )
    published = (
        "Sink metric at 0.3 and 64 tokens, % of heads, natural / random / one token "
        "repeated: Llama-2-7B 92.5 / 90.1 / 0.0, Mistral-7B 97.5 / 75.2 / 0.0, GPT2-XL "
        "77.0 / 70.3 / 62.3"
    )
    source = "Gu et al. 2024 (arXiv:2410.10781); Xiao et al. 2023 (arXiv:2309.17453)"
    method = (
        "The same metric on windows of the shipped text and on drawn tokens, without a "
        "token in front. A layer has sinks if half of its heads do."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """The sink metric by kind of input, and the layers that have sinks."""
        found = sink_controls(
            model,
            n_tokens=self.n_tokens,
            n_sequences=self.n_sequences,
            progress=progress,
        )
        each = found["sink_metric_sequences"].isel(bos=0)
        claimed = {
            "natural": {"least": 50.0},
            "random": {"least": 50.0},
            "repeated": {"most": 5.0},
        }
        evidence = [
            Evidence.mean(
                f"heads with a sink at the first token, {kind} tokens",
                "% of heads",
                each.sel(kind=kind),
                "sequences",
                **bounds,
            )
            for kind, bounds in claimed.items()
        ]
        rows = windows(model, self.n_tokens, self.n_sequences // 2)
        first = are_sinks(_received(model, rows), EPSILON).sel(key=0)
        share = (first.mean("head") >= 0.5).mean("layer")
        layers = "layers in which at least half of the heads have one"
        return [
            *evidence,
            Evidence.mean(layers, "fraction", share, "sequences", least=0.5),
        ]


@dataclass(frozen=True)
class LaterSinks(Claim):
    """Yu et al. 2024: sinks are not only at the start, but at words that say little."""

    n_texts: int = 8
    """Stretches of the shipped text."""
    n_tokens: int = 230
    """Of each."""

    name = "later_sinks"
    statement = (
        "Attention sinks also appear at later tokens, and these are tokens of little "
        "content."
    )
    published = (
        "Sinks throughout the context in Llama-2-7B, shown in maps; calibrating them "
        "in a head at a time raises accuracy by up to 7.3 points (Llama-30B). No share "
        "of heads is given"
    )
    source = "Yu et al. 2024, ACT (arXiv:2406.15765)"
    method = (
        "A token is a sink of a head that gives it a mean weight above 0.1 (the "
        "released code's threshold), of the 8 queries or more that see it. Little "
        "content: no letter or digit, or an English function word."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Heads with a later sink, and what their sinks are."""
        heads, little, chance = [], [], []
        rows = windows(model, self.n_tokens, self.n_texts)
        for done, row in enumerate(rows):
            told(progress, self.name, done, len(rows))
            traced = _received(model, row)
            is_later = are_sinks(traced, ACT_FIXED).sel(key=slice(1, None))
            heads.append(float((is_later.max("key") > 0).mean()))
            cells = SinkTokens(epsilon=ACT_FIXED).cells(traced)
            later = cells.loc[cells["key"] > 0, "key_token"].tolist()
            words = statistic(traced, "received")["key_token"].values.tolist()
            little.append(_share_of_little(later))
            chance.append(_share_of_little(words[1:]))
        return [
            Evidence.mean(
                "heads with a sink at a later token",
                "fraction",
                heads,
                "texts",
                least=0.05,
            ),
            Evidence.mean(
                "later sinks at tokens of little content",
                "fraction",
                little,
                "texts",
                least=0.5,
            ),
            Evidence.mean(
                "the same, beyond the share of such tokens in the text",
                "fraction",
                np.subtract(little, chance),
                "texts",
                least=0.0,
            ),
        ]


def windows(model: "Model", n_tokens: int, n_texts: int) -> list[tuple[int, ...]]:
    """Stretches of the shipped text, each cut to the same number of tokens."""
    items = Texts(max_tokens=n_tokens + 2).items(model)
    rows = [item.ids[:n_tokens] for item in items if len(item.ids) >= n_tokens]
    return rows[:n_texts]


def says_little(token: str) -> bool:
    """Whether a token is no word, or one that carries no content of its own."""
    word = token.strip().lower()
    return not re.search(r"[^\W_]", word) or word in FUNCTION_WORDS


def _share_of_little(tokens: Iterable[str]) -> float:
    return float(np.mean([says_little(token) for token in tokens] or [np.nan]))


def _received(
    model: "Model", rows: Sequence[int] | Sequence[Sequence[int]]
) -> xr.DataTree:
    capture = Capture((Received(),), edges=None, residual=False)
    return trace(model, rows, capture=capture)
