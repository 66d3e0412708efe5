"""Saliency of every output token by every method, over what is read or encoded."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.probes.crossattn.clusters import SEGMENTS, stretches, superpixels
from interp.probes.crossattn.forced import Fill, Forced, Remembered, Space
from interp.probes.crossattn.gradients import (
    GRADIENTS,
    GradientOptions,
    captum_attr,
    gradient,
)
from interp.probes.crossattn.parts import Arrays, Parts
from interp.probes.crossattn.perturbation import Sums, perturb

METHODS = (*GRADIENTS, "ablation", "perturbation")

CHUNK = 25
"""Masks after which the sums of a perturbation are kept."""

Progress = Callable[[str, int, int], None]
"""Told a step, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Options:
    """How much is computed, and which of the choices that papers leave open is taken.

    Attributes:
        steps: Points of integrated gradients over sound, where a gradient is dear.
        samples: Points of gradient SHAP over sound.
        windows: Stretches that ablation takes away one by one, at most.
        masks: Random masks of a perturbation of sound.
        segments: Superpixels per 500 frames, one number a granularity.
        cheap: Points of integrated gradients and gradient SHAP elsewhere.
        cheap_masks: Random masks of a perturbation elsewhere.
        fill: What removed sound becomes: `silence`, or the `mean` of the features.
        pool: How frames and channels of a position become one: `max` or `mean`.
        seed: Of masks and of gradient SHAP.
        graphs: Forwards whose graphs are kept in memory at once.
    """

    steps: int = 4
    samples: int = 4
    windows: int = 64
    masks: int = 200
    segments: tuple[int, ...] = SEGMENTS
    cheap: int = 10
    cheap_masks: int = 400
    fill: Fill = "silence"
    pool: str = "max"
    seed: int = 0
    graphs: int = 10

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        counts = ("steps", "samples", "windows", "masks", "cheap", "cheap_masks")
        for name in (*counts, "graphs"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name}={getattr(self, name)} was asked for; at least 1 is needed."
                )
        if self.fill not in ("silence", "mean") or self.pool not in ("max", "mean"):
            raise InputError(
                f"fill={self.fill!r}, pool={self.pool!r} were asked for; removed sound "
                "becomes 'silence' or 'mean', positions are pooled by 'max' or 'mean'."
            )
        if not self.segments or min(self.segments) < 1:
            raise InputError(
                f"segments={self.segments} were asked for. Give one number of clusters "
                f"from 1 on for each granularity, such as {SEGMENTS}."
            )


def named(methods: Sequence[str] | None) -> tuple[str, ...]:
    """The methods of those names, all for None, in the order of `METHODS`.

    Raises:
        InputError: A name that no method has, with the nearest one, or none at all.
    """
    if methods is None:
        return METHODS
    for name in methods:
        if name not in METHODS:
            near = get_close_matches(name, METHODS, n=1, cutoff=0)[0]
            raise InputError(
                f"No method of saliency is called {name!r}. Did you mean {near!r}? "
                f"There are {', '.join(METHODS)}."
            )
    if not methods:
        raise InputError(f"No method was named. There are {', '.join(METHODS)}.")
    return tuple(name for name in METHODS if name in methods)


def saliency(
    forced: Forced,
    space: Space,
    method: str,
    options: Options,
    parts: Parts | None = None,
    progress: Progress = lambda step, done, total: None,
    shared: Remembered | None = None,
) -> Arrays:
    """Saliency of all output tokens by one method in one space.

    Args:
        forced: The utterance.
        space: `input`, or `states`, the encoder's outputs.
        method: One of `METHODS`.
        options: How much is computed.
        parts: Where finished tokens are kept, and read from.
        progress: Told of every token, stretch or mask.
        shared: The scores of the space, for methods that take gradients at the same
            point; a new one for None.

    Returns:
        `positions` `[token, position]`, magnitudes. Over a spectrogram also `map`
        `[token, frame, channel]`, signed. Of a perturbation `error` `[token,
        position]`, the standard error; of integrated gradients `total` `[token]`,
        their sum, in nats.

    Raises:
        UnsupportedModelError: captum is needed and not installed.
    """
    parts = parts or Parts(None)
    step = f"{method} of {'what is read' if space == 'input' else 'encoder outputs'}"

    def tell(done: int, total: int) -> None:
        progress(step, done, total)

    deciding = {name: getattr(options, name) for name in DECIDING[method]}
    whole = json.dumps(deciding, sort_keys=True)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    parts = parts.below(f"{space}-{method}-{digest}")
    if method == "perturbation":
        return _perturbed(forced, space, options, parts, tell)
    if method == "ablation":
        found = parts.get("all", _Ablation(forced, space, options, tell))
    else:
        found = _gradients(forced, space, method, options, parts, tell, shared)
    if "map" in found:
        found["positions"] = pooled(forced, found["map"], options.pool)
    return found


DECIDING: dict[str, tuple[str, ...]] = {
    "gradient": (),
    "input_x_gradient": (),
    "integrated_gradients": ("steps", "cheap", "fill"),
    "gradient_shap": ("samples", "cheap", "fill", "seed"),
    "ablation": ("windows", "fill"),
    "perturbation": ("segments", "fill", "seed"),
}
"""Options that a method's kept pieces depend on; a perturbation can be gone on with."""


def _is_dear(forced: Forced, space: Space) -> bool:
    return space == "input" and forced.utterance.kind == "speech"


def _gradients(
    forced: Forced,
    space: Space,
    method: str,
    options: Options,
    parts: Parts,
    tell: Callable[[int, int], None],
    shared: Remembered | None,
) -> Arrays:
    values, scores = forced.of(space)
    dear = _is_dear(forced, space)
    own = GradientOptions(
        options.steps if dear else options.cheap,
        options.samples if dear else options.cheap,
        seed=options.seed,
    )
    remembered = shared or Remembered(scores, options.graphs)
    baseline = forced.baseline(space, options.fill)
    found: list[Arrays] = []
    n_tokens = len(forced.targets)
    for token in range(n_tokens):

        def make(token: int = token) -> Arrays:
            signed = gradient(method, remembered, values, baseline, token, own)
            return _located(forced, space, method, signed)

        found.append(parts.get(f"token_{token}", make))
        tell(token + 1, n_tokens)
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


@dataclass
class _Ablation:
    """Takes stretches away one by one; captum's feature ablation."""

    forced: Forced
    space: Space
    options: Options
    tell: Callable[[int, int], None]

    def __call__(self) -> Arrays:
        forced, space = self.forced, self.space
        values, scores = forced.of(space)
        n_cells = forced.n_positions
        stretch = -(-n_cells // self.options.windows)
        [groups] = stretches(n_cells, [stretch])
        n_groups = int(groups[-1]) + 1
        done = 0

        def counted(rows: Tensor) -> Tensor:
            nonlocal done
            self.tell(min(done, n_groups), n_groups)
            done += 1
            return scores(rows)

        signed = captum_attr().FeatureAblation(counted)
        with torch.no_grad():
            found = signed.attribute(
                values,
                baselines=forced.baseline(space, self.options.fill),
                feature_mask=_numbered(forced, space, groups, values),
            )
        return _located(forced, space, "ablation", found)


def _numbered(
    forced: Forced, space: Space, groups: np.ndarray, values: Tensor
) -> Tensor:
    """Number of every cell's group, of the shape of `values`; padding goes along."""
    last = int(groups[-1])
    mask = torch.full_like(values, last, dtype=torch.long)
    for group in range(last):
        mask[_cells(forced, space, groups == group).expand_as(values)] = group
    return mask


def _cells(forced: Forced, space: Space, chosen: np.ndarray) -> Tensor:
    """Positions as cells that broadcast over what stands in a space."""
    if space == "input":
        return forced.cells(chosen)
    cells = np.zeros(forced.states.shape[1], bool)
    cells[: len(chosen)] = chosen
    return torch.from_numpy(cells).to(forced.states.device)[None, :, None]


def _perturbed(
    forced: Forced,
    space: Space,
    options: Options,
    parts: Parts,
    tell: Callable[[int, int], None],
) -> Arrays:
    values, _ = forced.of(space)
    dear = _is_dear(forced, space)
    n_masks = options.masks if dear else options.cheap_masks
    is_map = space == "input" and forced.has_features
    if is_map:
        features = values[0, :, : forced.n_frames].T.float().cpu().numpy()
        clusters = superpixels(features, options.segments)
    elif space == "input" and forced.utterance.kind != "speech":
        clusters = stretches(forced.n_positions, [1])
    else:
        clusters = stretches(forced.n_positions, [1, 2, 4])

    def expand(mask: np.ndarray) -> Tensor:
        if not is_map:
            return _cells(forced, space, mask)
        whole = np.zeros(values.shape[1:], bool)
        whole[:, : forced.n_frames] = mask.T
        return torch.from_numpy(whole)[None]

    def log_probabilities(rows: Tensor) -> Tensor:
        states = forced.encode(rows) if space == "input" else rows
        return forced.log_probabilities(states)

    sums = _kept_sums(parts, clusters, n_masks)
    while sums is None or sums.n_masks < n_masks:
        until = min((0 if sums is None else sums.n_masks) + CHUNK, n_masks)
        sums = perturb(
            log_probabilities,
            values,
            forced.baseline(space, options.fill),
            clusters,
            expand,
            until,
            seed=options.seed,
            sums=sums,
            progress=lambda done, total: tell(done, n_masks),
        )
        _keep_sums(parts, sums)
    mean, error = sums.saliency(clusters)
    halves = sums.halves(clusters)
    if not is_map:
        return {"positions": mean, "error": error, "halves": halves}
    return {
        "positions": pooled(forced, mean, options.pool),
        "error": _error_at_peak(forced, mean, error),
        "halves": np.stack([pooled(forced, half, options.pool) for half in halves]),
        "map": mean.astype(np.float32),
    }


def _error_at_peak(forced: Forced, mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Standard error of the largest cell of every position, `[token, position]`.

    Cells of a cluster move together, so that a mean over them is no surer.
    """
    channel = mean.argmax(2)[..., None]
    rows = np.take_along_axis(mean, channel, 2)[..., 0]
    errors = np.take_along_axis(error, channel, 2)[..., 0]
    peaks = forced.positions(rows)
    edges = np.append(forced.edges, forced.n_frames)
    own = np.repeat(peaks, np.diff(edges), axis=1) == rows
    return forced.positions(np.where(own, np.nan_to_num(errors), -1))


def _kept_sums(
    parts: Parts, clusters: Sequence[np.ndarray], n_masks: int
) -> Sums | None:
    """What masks have shown so far; nothing if they were more than are asked for."""
    kept = parts.read("sums")
    if kept is None or int(kept["n_masks"]) > n_masks:
        return None
    arrays = [[kept[f"{what}{n}"] for n in range(len(clusters))] for what in "cfs"]
    return Sums(*arrays, n_masks=int(kept["n_masks"]))


def _keep_sums(parts: Parts, sums: Sums) -> None:
    arrays: Arrays = {"n_masks": np.array(sums.n_masks)}
    for what, each in zip("cfs", (sums.count, sums.first, sums.second), strict=True):
        arrays |= {f"{what}{n}": array for n, array in enumerate(each)}
    parts.write("sums", arrays)


def _located(forced: Forced, space: Space, method: str, signed: Tensor) -> Arrays:
    """Attributions `[token, ...]` of captum's: their map, or their positions."""
    found: Arrays = {}
    signed = signed.detach()
    if method == "integrated_gradients":
        found["total"] = signed.double().flatten(1).sum(1).cpu().numpy()
    values = signed.float().cpu().numpy()
    if space == "input" and forced.has_features:
        own = values.transpose(0, 2, 1)[:, : forced.n_frames]
        return found | {"map": own}
    if values.ndim == 2:  # samples of sound
        return found | {"positions": forced.positions(abs(values))}
    values = values[:, : forced.n_positions]
    if method == "gradient":
        rows = np.linalg.norm(values, axis=2)
    else:  # every channel of a stretch holds the effect of the whole stretch
        rows = values[..., 0] if method == "ablation" else values.sum(2)
    return found | {"positions": abs(rows)}


def pooled(forced: Forced, maps: np.ndarray, pool: str) -> np.ndarray:
    """Magnitudes `[token, position]` of `[token, frame, channel]`."""
    sizes = abs(maps)
    rows = sizes.max(2) if pool == "max" else sizes.mean(2)
    return forced.positions(rows, pool)
