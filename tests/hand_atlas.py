"""An atlas made by hand: the shapes of a real one, and strings that want to escape."""

import json

import numpy as np
import xarray as xr

STORY = (
    "The lighthouse keeper counted ships at dusk , and wrote each name in a ledger "
    "that nobody read . When Marta asked why he kept it , he said that a count is a "
    "promise to the next keeper : someone was here , someone was looking . She laughed "
    "and asked for the oldest page . It held three names , a storm and a drawing of a "
    "gull . Every evening since then the two of them added a line"
)
WORDS = STORY.split()

HOSTILE = {
    5: "<script>alert(1)</script>",
    9: "</script>",
    11: "\n",
    12: "\n\n",
    15: "\u202eright-to-left",
    18: "\u200f",
    21: "\x00\x07\x1b[31m",
    24: "x" * 10_240,
    27: '"><img src=x onerror=alert(2)>',
    30: "\u2028\u2029",
    33: "<!--",
    36: "{{ 7*7 }}{% raw %}",
    39: "%{z} <b>bold</b> &amp;",
    42: "\ufffd",
    45: "é́̂ שלום",
    48: "]]></style>",
}

FRACTION = {"units": "fraction"}


def hand_atlas(
    layers: int = 30,
    heads: int = 9,
    kv_heads: int = 3,
    tokens: int = 2000,
    texts: int = 1,
    seed: int = 0,
) -> xr.DataTree:
    """A decoder's atlas; with one text, intervals are NaN, as the real ones are."""
    rng = np.random.default_rng(seed)
    nodes = {"heads": xr.DataTree(_heads(rng, layers, heads, kv_heads, texts))}
    for i in range(texts):
        nodes[f"text_{i}"] = xr.DataTree(_text(rng, layers, heads, tokens, i))
    atlas = xr.DataTree.from_dict(nodes)
    atlas.attrs |= {
        "model": "smollm2-135m",
        "model_hash": "9f3c1be2" * 8,
        "model_type": "llama",
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "device": "cpu",
        "dtype": "float32",
        "versions": json.dumps({"torch": "2.13.0", "transformers": "5.23.0"}),
        "seed": 0,
        "skipped": "[]",
        "n_texts": texts,
        "epsilon": 0.3,
        "command": "interp atlas smollm2-135m --text lighthouse.txt",
        "intervals": f"95 % bootstrap over {texts} text chunks",
    }
    return atlas


def encoder_atlas() -> xr.DataTree:
    """An encoder's atlas: no causal detector, no residual stream, a reason for each."""
    atlas = hand_atlas(layers=6, heads=12, kv_heads=12, tokens=60)
    kept = atlas["heads"].to_dataset()[["entropy", "distance"]]
    result = xr.DataTree.from_dict({"heads": xr.DataTree(kept)})
    result.attrs |= atlas.attrs | {
        "model": "all-minilm-l6-v2",
        "skipped": json.dumps(
            [{"what": "sinks", "why": "an encoder's first token is seen by every key"}]
        ),
    }
    return result


def _heads(
    rng: np.random.Generator, layers: int, heads: int, kv_heads: int, texts: int
) -> xr.Dataset:
    depth = np.arange(layers)[:, None] / max(layers - 1, 1)
    noise = rng.random((layers, heads))
    first = np.where(depth > 0.38, 0.35 + 0.5 * noise, 0.12 * noise)
    first[: max(layers // 10, 1)] *= 0.4
    distance = np.exp(rng.normal(3.4, 1.3, (layers, heads))) + 400 * first
    order = distance.argsort(axis=None).argsort().reshape(distance.shape) / noise.size
    split = np.where(order < 0.3, -1, np.where(order >= 0.7, 1, 0)).astype(np.float32)
    peaked = rng.random((layers, heads)) ** 14
    values = {
        "sinks": (first, "mass on the first token", "fraction"),
        "sinks_anywhere": (
            0.2 * noise**4,
            "mass on the strongest other key",
            "fraction",
        ),
        "previous_token": (peaked * 0.93, "mass on the previous token", "fraction"),
        "duplicate_token": (
            0.5 * rng.random((layers, heads)) ** 9,
            "mass on the same token",
            "fraction",
        ),
        "induction": (
            rng.random((layers, heads)) ** 20 * 0.97,
            "induction score",
            "fraction",
        ),
        "echo": (rng.random((layers, heads)) ** 16 * 0.8, "echo score", "fraction"),
        "local": (1 - 0.9 * first - 0.1 * noise, "mass within 128 tokens", "fraction"),
        "distance": (distance, "mean attention distance", "tokens"),
        "entropy": (
            0.5 + 3.5 * rng.random((layers, heads)),
            "entropy of the rows",
            "nats",
        ),
        "global_head": (split, "local or global", "class"),
    }
    coords = {
        "layer": np.arange(layers),
        "head": np.arange(heads),
        "kv_head": ("head", np.arange(heads) // max(heads // kv_heads, 1)),
        "bound": ["low", "high"],
    }
    heads_ = xr.Dataset(coords=coords)
    for name, (value, long_name, units) in values.items():
        value = value.astype(np.float32)
        spread = np.full_like(value, np.nan) if texts < 2 else 0.06 * np.abs(value)
        heads_[name] = (("layer", "head"), value)
        heads_[f"{name}_interval"] = (
            ("layer", "head", "bound"),
            np.stack([value - spread, value + spread], axis=-1),
        )
        heads_[f"{name}_texts"] = (
            ("text", "layer", "head"),
            np.repeat(value[None], texts, axis=0),
        )
        heads_[name].attrs |= {
            "units": units,
            "long_name": long_name,
            "source": "arXiv:2410.10781",
            "description": f"High where a head has much {long_name}.",
            "python": (
                "import interp\nfrom interp.probes import detect\n\n"
                'model = interp.load("smollm2-135m")\n'
                f'detect(interp.trace(model, text), ["{name}"])'
            ),
            "task": "repeated_random" if name in ("induction", "echo") else "text",
            "site": "self",
        }
    heads_["global_head"].attrs |= {
        "flag_values": [-1, 0, 1],
        "flag_meanings": "local between global",
    }
    heads_["entropy"][0, 1] = np.nan
    return heads_


def _text(
    rng: np.random.Generator, layers: int, heads: int, tokens: int, i: int
) -> xr.Dataset:
    strings = [("" if n == 0 else " ") + WORDS[n % len(WORDS)] for n in range(tokens)]
    for place, token in HOSTILE.items():
        if place < tokens:
            strings[place] = token
    weight = rng.random((layers, tokens)) ** 3
    received = weight * 4 / tokens
    received[:, 0] = np.where(np.arange(layers) > 0.38 * layers, 0.6, 0.05)
    share = np.zeros((layers, tokens))
    share[:, 0] = np.round(received[:, 0] * heads) / heads
    for place in (12, 29, 61):
        if place < tokens:
            share[layers // 3 : layers // 2, place] = 1 / heads
            received[layers // 3 : layers // 2, place] = 0.08
    for grid in (received, share):
        grid[:, -7:] = np.nan
    depth = np.arange(layers + 1)
    peak = np.where((depth > layers * 0.38) & (depth < layers - 1), 22_500.0, 90.0)
    peak = np.where((depth > 2) & (depth <= layers * 0.38), 650.0, peak)
    median = 0.4 + 2.2 * depth / layers
    largest = 8 + 30 * rng.random((layers + 1, tokens))
    largest[:, 0] = peak
    channel = rng.integers(0, 576, (layers + 1, tokens)).astype(np.int32)
    channel[:, 0] = np.where(peak > 100, 507, 14)
    jump = int(np.argmax(peak > 1000))
    attention, mlp = rng.normal(0, 1, (2, layers + 1, tokens))
    mlp[jump, 0] = peak[jump]
    attention[0], mlp[0] = np.nan, np.nan
    others = np.broadcast_to([247, 14, 100, 260, 230, 59, 308], (layers + 1, 7))
    top_channel = np.concatenate([channel[:, :1], others], axis=1)
    top_value = peak[:, None] * np.geomspace(1, 0.02, 8)[None]
    top_value[:, 1::3] *= -1
    massive = (largest > 100) & (largest >= 1000 * median[:, None])
    loose = (largest > 100) & (largest >= 100 * median[:, None])
    residual, grid = ("layer_residual", "token"), ("layer", "token")
    activation = {"units": "activation"}
    text = xr.Dataset(
        {
            "sink_share": (
                grid,
                share.astype("f4"),
                FRACTION | {"long_name": "share of heads with a sink"},
            ),
            "received": (
                grid,
                received.astype("f4"),
                FRACTION | {"long_name": "mean attention received"},
            ),
            "max": (residual, largest.astype("f4"), activation),
            "max_channel": (residual, channel),
            "attention_write": (residual, attention.astype("f4"), activation),
            "mlp_write": (residual, mlp.astype("f4"), activation),
            "massive": (residual, massive),
            "massive_loose": (residual, loose),
            "median_all": (residual[:1], median.astype("f4"), activation),
            "top_value": (
                ("layer_residual", "rank"),
                top_value.astype("f4"),
                activation | {"long_name": "residual stream"},
            ),
            "top_token": (("layer_residual", "rank"), np.zeros((layers + 1, 8), "i4")),
            "top_channel": (("layer_residual", "rank"), top_channel.astype("i4")),
        },
        coords={
            "layer": np.arange(layers),
            "layer_residual": depth,
            "token": np.arange(tokens),
            "token_text": ("token", np.array(strings, dtype=object)),
        },
    )
    text.attrs |= {
        "name": f"lighthouse-{i}",
        "n_tokens": tokens,
        "input_hash": "ab" * 32,
    }
    return text
