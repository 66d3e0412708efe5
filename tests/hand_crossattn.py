"""Comparisons of attention with saliency made by hand, of every kind of model."""

import json

import numpy as np
import xarray as xr

Draw = np.random.Generator
MEASURES = ("pearson", "spearman", "topk", "js_distance", "peak")
METHODS = ("gradient", "perturbation")
BASELINES = ("attention", "rollout")
EXPLANATIONS = ("attention", "perturbation", "perturbation@states", "random")
PUBLISHED = (
    {"what": "best aggregate", "low": 0.49, "high": 0.63, "source": "arXiv:2509.18010"},
)


def hand_crossattn(
    kind: str = "speech", words: tuple[str, ...] = (" the", " cat"), n: int = 1
) -> xr.DataTree:
    """A tree as `interp.probes.crossattn.compare` makes it; numbers are random.

    Args:
        kind: `speech`, `text` or `decoder`.
        words: Output tokens.
        n: Utterances.
    """
    spaces = ("input",) if kind == "decoder" else ("input", "states")
    draw = np.random.default_rng(0)
    nodes: dict[str, xr.Dataset] = {}
    for number in range(n):
        name = f"/utterance_{number}"
        nodes[name] = _utterance(kind, words, spaces, draw)
        nodes[f"{name}/curves"] = _curves(len(words), draw)
        if kind == "speech":
            times = np.arange(len(words)) / 10
            nodes[f"{name}/words"] = xr.Dataset(
                {
                    "text": ("word", np.array(words, dtype=object)),
                    "begin": ("word", times),
                    "end": ("word", times + 0.1),
                }
            )
    nodes["/agreement"] = _agreement(spaces, draw)
    nodes["/faithfulness"] = _areas(draw)
    if kind == "speech":
        heads = draw.random((2, 3))
        of = ("layer", "head")
        nodes["/timing"] = xr.Dataset(
            {
                "head_error": (of, heads, {"units": "ms", "long_name": "peaks apart"}),
                "rank": (of, heads.argsort(None).argsort().reshape(2, 3) + 1),
                "chosen": (of, (heads < 0.5).astype(int), {"long_name": "chosen"}),
            }
        )
    attrs = {
        "model": "hand-made",
        "kind": kind,
        "seed": 0,
        "methods": json.dumps(METHODS),
        "parameters": json.dumps({"steps": 32}),
        "skipped": json.dumps([{"what": "rollout", "why": "no reason"}]),
        "published": json.dumps(PUBLISHED if kind == "speech" else ()),
        "heads": "all",
        "n_utterances": n,
        "n_tokens": n * len(words),
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **nodes})


def _utterance(
    kind: str,
    words: tuple[str, ...],
    spaces: tuple[str, ...],
    draw: Draw,
) -> xr.Dataset:
    n_tokens, n_positions = len(words), 10
    shape = n_tokens, n_positions
    dims = ("token", "position")
    attention = draw.dirichlet(np.ones(n_positions), (2, 3, n_tokens))
    coords = {
        "token_text": ("token", np.array(words, dtype=object)),
        "position": np.arange(n_positions),
        "space": np.array(spaces, dtype=object),
        "attribution": np.array(METHODS, dtype=object),
        "baseline": np.array(BASELINES, dtype=object),
        "layer": np.arange(2),
        "head": np.arange(3),
    }
    saliency = draw.random((len(spaces), 2, *shape))
    gap = np.full((len(spaces), n_tokens), 2.0)
    found = {
        "attention": (("layer", "head", *dims), attention),
        "aggregate": (dims, attention.mean((0, 1))),
        "saliency": (("space", "attribution", *dims), saliency),
        "monte_carlo_error": (("space", *dims), saliency[:, 1] / 10),
        "completeness_error": (
            ("space", "token"),
            gap / 20,
        ),
        "completeness_gap": (("space", "token"), gap),
    }
    attrs = {"name": "hand.wav", "text": "".join(words)}
    if kind != "speech":
        read = [f"<b>w{i}</b>" for i in range(n_positions)]
        coords["position_text"] = ("position", np.array(read, dtype=object))
        return xr.Dataset(found, coords, attrs)
    coords["position_begin"] = ("position", np.arange(n_positions) / 10)
    coords["frame_begin"] = ("frame", np.arange(20) / 20)
    wave = np.sin(np.arange(1600) / 5).astype(np.float32)
    found["waveform"] = (("sample",), wave, {"rate": 1600})
    found["features"] = (("frame", "channel"), draw.random((20, 8)))
    whole = draw.normal(size=(2, n_tokens, 20, 8))
    found["saliency_map"] = (("attribution", "token", "frame", "channel"), whole)
    attrs |= {"begin": 0.0, "seconds": 1.0, "rate": 1600, "position_ms": 100.0}
    return xr.Dataset(found, coords, attrs)


def _curves(n_tokens: int, draw: Draw) -> xr.Dataset:
    dims = ("direction", "explanation", "token", "fraction")
    values = draw.random((2, len(EXPLANATIONS), n_tokens, 5))
    coords = {
        "direction": np.array(("deletion", "insertion"), dtype=object),
        "explanation": np.array(EXPLANATIONS, dtype=object),
        "token": np.arange(n_tokens),
        "fraction": np.linspace(0, 1, 5),
    }
    return xr.Dataset({"curve": (dims, values)}, coords)


def _agreement(spaces: tuple[str, ...], draw: Draw) -> xr.Dataset:
    of, shape = ("space", "attribution", "measure"), (len(spaces), 2, len(MEASURES))
    overall = draw.random(shape)
    both = np.stack([overall - 0.1, overall + 0.1], -1)
    by_head = draw.random((*shape, 2, 3))
    nothing = np.full_like(both, np.nan)
    units = ["ms" if measure == "peak" else "1" for measure in MEASURES]
    return xr.Dataset(
        {
            "overall": (of, overall),
            "overall_interval": (("over", *of, "bound"), np.stack([both, nothing])),
            "overall_null": ((*of, "bound"), np.stack([-overall, overall], -1) / 5),
            "overall_p": (of, overall / 10),
            "by_head": ((*of, "layer", "head"), by_head),
            "by_head_interval": (
                (*of, "layer", "head", "bound"),
                np.stack([by_head - 0.1, by_head + 0.1], -1),
            ),
            "of_baseline": ((*of, "baseline"), draw.random((*shape, 2))),
            "measure_units": ("measure", np.array(units, dtype=object)),
        }
        | (_MIXING if "states" in spaces else {}),
        {
            "space": np.array(spaces, dtype=object),
            "attribution": np.array(METHODS, dtype=object),
            "measure": np.array(MEASURES, dtype=object),
            "over": np.array(("tokens", "utterances"), dtype=object),
            "baseline": np.array(BASELINES, dtype=object),
            "layer": np.arange(2),
            "head": np.arange(3),
        },
    )


_MIXING = {
    "coverage": ("attribution", [0.6, 0.7]),
    "context_mixing": ("attribution", [0.1, 0.2]),
}


def _areas(draw: Draw) -> xr.Dataset:
    of = ("direction", "explanation")
    values = draw.random((2, len(EXPLANATIONS)))
    both = np.stack([values - 0.1, values + 0.1], -1)
    return xr.Dataset(
        {
            "auc": (of, values),
            "auc_interval": ((*of, "bound"), both),
            "auc_gain": (of, values / 2),
            "auc_gain_interval": ((*of, "bound"), both / 2),
        },
        {
            "direction": np.array(("deletion", "insertion"), dtype=object),
            "explanation": np.array(EXPLANATIONS, dtype=object),
        },
    )
