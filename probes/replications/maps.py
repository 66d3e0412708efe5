"""Claims on attention maps: alike in neighboring layers, on the same keys over steps.

Each text is short enough for its maps to be held whole.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.capture import Capture
from interp.kernels.definitions import Pattern
from interp.probes.detector import statistic
from interp.probes.experiment import Progress
from interp.probes.replications.claim import Claim, Evidence, told
from interp.probes.replications.sinks import windows
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class _OnMaps(Claim):
    """A claim that is measured on the maps of one text after another."""

    n_texts: int = 8
    """Stretches of the shipped text."""
    n_tokens: int = 192
    """Of each."""

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """What each text's maps give, and its mean over texts."""
        capture = Capture((Pattern(),), edges=None, residual=False)
        rows = windows(model, self.n_tokens, self.n_texts)
        measured = []
        for done, row in enumerate(rows):
            told(progress, self.name, done, len(rows))
            traced = trace(model, row, capture=capture)
            measured.append(self.read(statistic(traced, "pattern")))
        return [
            Evidence.mean(what, "fraction", [m[n] for m in measured], "texts", **bounds)
            for n, (what, bounds) in enumerate(self.asked)
        ]

    @property
    @abstractmethod
    def asked(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """What is measured, and where the claim has it."""

    @abstractmethod
    def read(self, maps: xr.DataArray) -> tuple[float, ...]:
        """What is asked, from maps (layer, head, query, key) of one text."""


@dataclass(frozen=True)
class AdjacentLayers(_OnMaps):
    """Rajabzadeh et al. 2024: inner layers attend alike, and can share their maps."""

    name = "adjacent_layers"
    statement = "Adjacent layers have similar attention maps."
    published = (
        "Maps of inner layers are called highly similar, and are shared in blocks of "
        "layers after distillation; no figure is given"
    )
    source = "Rajabzadeh et al. 2024, EchoAtt (arXiv:2409.14595)"
    method = (
        "Cosine of the rows of two layers' mean maps over heads, from the ninth query "
        "on; beside it that of layers a third of the depth or more apart. The same "
        "without the column of the first token and the diagonal, which all layers have."
    )

    @property
    def asked(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """Cosines, and how far they exceed those of distant layers."""
        similar, more = {"least": 0.8}, {"least": 0.0}
        return (
            ("cosine of adjacent layers", similar),
            ("the same, beyond that of distant layers", more),
            ("cosine without the sink column and the diagonal", similar),
            ("the same, beyond that of distant layers", more),
        )

    def read(self, maps: xr.DataArray) -> tuple[float, ...]:
        """Cosines with and without what all layers have."""
        whole = maps.mean("head", dtype="float64").values
        inner = whole.copy()
        inner[:, :, 0] = 0
        inner[:, range(inner.shape[1]), range(inner.shape[1])] = 0
        found = []
        for layers in (whole, inner):
            near, far = near_and_far(_cosines(layers[:, 8:]))
            found += [near, near - far]
        return tuple(found)


@dataclass(frozen=True)
class KeysOverLayers(_OnMaps):
    """Yang et al. 2024: consecutive layers choose the same keys."""

    kept: float = 0.125
    """Share of the keys that are chosen."""

    name = "keys_persist_over_layers"
    statement = "The keys with most attention are largely the same in adjacent layers."
    published = (
        "Overlap of consecutive layers' keys is called significant; a choice made anew "
        "in one middle layer raises recall from 20 to 40 %"
    )
    source = "Yang et al. 2024, TidalDecode (arXiv:2410.05076)"
    method = (
        "Keys with the most weight summed over heads, an eighth of all, for the "
        "queries of the second half of each text: share that two layers have in "
        "common."
    )

    @property
    def asked(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """Overlap, and how far it exceeds that of distant layers."""
        return (
            ("top keys that adjacent layers share", {"least": 0.5}),
            ("the same, beyond that of distant layers", {"least": 0.0}),
        )

    def read(self, maps: xr.DataArray) -> tuple[float, ...]:
        """Shares of top keys in common."""
        half = maps.shape[-1] // 2
        weights = maps.sum("head").values[:, half:]
        chosen = top_keys(weights, round(self.kept * half)).astype("float64")
        both = np.einsum("iqk,jqk->ij", chosen, chosen)
        near, far = near_and_far(both / chosen[0].sum())
        return near, near - far


@dataclass(frozen=True)
class KeysOverSteps(_OnMaps):
    """Xu et al. 2024: the keys of one step serve the next ones."""

    kept: float = 0.25
    """Share of the keys that are kept."""
    steps: int = 50
    """For how many queries."""

    name = "keys_persist_over_steps"
    statement = (
        "The keys with most attention at one step hold most of it at the next 50 "
        "steps, more than the first and latest keys do."
    )
    published = (
        "More than 90 % of the attention after 8,192 tokens, with 2,048 keys kept; "
        "about 65 % for as many first and latest keys"
    )
    source = "Xu et al. 2024, Recycled Attention (arXiv:2411.05787)"
    method = (
        "A quarter of the keys of the middle query, by the mean weight of each KV "
        "group, or four first and else the latest; tokens that came since are in both. "
        "Texts are far shorter than the paper's. Also of the attention that the first "
        "token leaves."
    )

    @property
    def asked(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """Attention that is held, and beyond that of first and latest keys."""
        return (
            ("attention on the kept keys", {"least": 0.9}),
            ("the same, beyond first and latest keys", {"least": 0.0}),
            ("attention on the kept keys, first token left out", {"least": 0.9}),
            ("the same, beyond first and latest keys", {"least": 0.0}),
        )

    def read(self, maps: xr.DataArray) -> tuple[float, ...]:
        """Mass on either set, with and without the first token."""
        groups = maps.groupby("kv_head").mean("head", dtype="float64")
        weights = groups.transpose("layer", "kv_head", "query", "key").values
        at = weights.shape[-1] // 2
        n_kept = round(self.kept * at)
        kept = top_keys(weights[:, :, at, : at + 1], n_kept)
        recent = np.zeros_like(kept)
        recent[..., :4] = recent[..., at + 1 - (n_kept - 4) :] = True
        later = weights[:, :, at + 1 : at + 1 + self.steps]
        found = []
        for first in (0, 1):
            all_of_it = later[..., first:].sum(-1)
            since = later[..., at + 1 :].sum(-1)
            held = [
                (later[..., first : at + 1] * keys[:, :, None, first:]).sum(-1)
                for keys in (kept, recent)
            ]
            shares = [float(((each + since) / all_of_it).mean()) for each in held]
            found += [shares[0], shares[0] - shares[1]]
        return tuple(found)


def top_keys(weights: np.ndarray, n: int) -> np.ndarray:
    """Which keys, along the last axis, have the n largest weights; of equals the first.

    Returns:
        Of the shape of `weights`, booleans.
    """
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :n]
    chosen = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return chosen


def near_and_far(similarity: np.ndarray) -> tuple[float, float]:
    """Mean over adjacent layers, and over those a third of the depth or more apart.

    Args:
        similarity: Of every two layers, [layer, layer].
    """
    n_layers = len(similarity)
    apart = abs(np.subtract.outer(range(n_layers), range(n_layers)))
    far = apart >= max(n_layers / 3, 2)
    return float(similarity[apart == 1].mean()), float(similarity[far].mean())


def _cosines(layers: np.ndarray) -> np.ndarray:
    """Mean cosine over rows of every two layers, [layer, layer]."""
    unit = layers / np.linalg.norm(layers, axis=-1, keepdims=True)
    return np.einsum("iqk,jqk->ij", unit, unit) / layers.shape[1]
