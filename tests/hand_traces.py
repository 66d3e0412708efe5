"""Traces made by hand: every statistic from dense weights, by its definition."""

import numpy as np
import xarray as xr


def site(
    weights,
    *,
    tokens=None,
    window=None,
    local_window=128,
    group=1,
    last=32,
    first=4,
    clip=10,
    near=2,
):
    """A site node's Dataset from weights [layer, head, query, key].

    What a row lacks to sum to 1, a learned sink has taken.

    `tokens` are token ids or strings, for the edges; `window` one number a layer;
    `near` where the horizon of `fai` begins, which goes on to the end.
    """
    p = np.asarray(weights, dtype=float)
    n_layers, n_heads, n_queries, n_keys = p.shape
    query, key = np.arange(n_queries), np.arange(n_keys)
    back = query[:, None] - key
    spans = np.full(n_layers, np.inf) if window is None else np.asarray(window, float)
    sees = (back >= 0) & (back < spans[:, None, None])
    rows = {
        "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(-1),
        "distance": (p * back).sum(-1),
        "waad": (p * back.clip(max=clip)).sum(-1),
        "first_mass": p[..., 0],
        "sink_mass": p[..., :first].sum(-1),
        "learned_sink": (1 - p.sum(-1)).clip(min=0),
        "local_mass": (p * (back < local_window)).sum(-1),
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        received = p.sum(-2) / sees.sum(-2)[:, None]
        late = p[..., -last:, :].sum(-2) / sees[:, -last:].sum(-2)[:, None]
        behind = sees & (back >= near)
        fai = (p * behind[:, None]).sum(-2) / behind.sum(-2)[:, None]
    arrays: dict[str, tuple] = {
        name: (("layer", "head", "query"), rows[name]) for name in rows
    }
    arrays["received"] = (("layer", "head", "key"), received)
    arrays["received_late"] = (("layer", "head", "key"), late)
    arrays["fai"] = (("layer", "head", "key"), fai)
    names = np.array([f"t{token}" for token in (query if tokens is None else tokens)])
    if tokens is not None:
        arrays["edges"] = (("layer", "head", "query", "edge"), edges(p, tokens))
    dataset = xr.Dataset(
        {
            name: (dims, values.astype("float32"))
            for name, (dims, values) in arrays.items()
        },
        coords={
            "layer": np.arange(n_layers),
            "head": np.arange(n_heads),
            "query": query,
            "key": key,
            "kv_head": ("head", np.arange(n_heads) // group),
            "query_token": ("query", names[:n_queries]),
            "key_token": ("key", names[:n_keys]),
            "window": ("layer", np.where(np.isinf(spans), np.nan, spans)),
        },
    )
    if tokens is not None:
        dataset = dataset.assign_coords(edge=["previous", "duplicate", "induction"])
    dataset["local_mass"].attrs["window"] = local_window
    dataset["sink_mass"].attrs["first"] = first
    dataset["received_late"].attrs["last"] = last
    dataset["waad"].attrs["clip"] = clip
    dataset["fai"].attrs |= {"near": near, "far": 1 << 30}
    return dataset


def edges(p, tokens):
    """Mass on the previous key, on all equal earlier ones, and on the keys after."""
    tokens = list(tokens)
    out = np.full((*p.shape[:3], 3), np.nan)
    for i, token in enumerate(tokens):
        earlier = [j for j in range(i) if tokens[j] == token]
        if i:
            out[..., i, 0] = p[..., i, i - 1]
        if earlier:
            out[..., i, 1] = sum(p[..., i, j] for j in earlier)
            out[..., i, 2] = sum(p[..., i, j + 1] for j in earlier)
    return out


def residual(
    maximum,
    channel,
    median_all,
    *,
    cosine=None,
    attention_write=None,
    mlp_write=None,
    top=(),
):
    """A residual node's Dataset from arrays [layer, token].

    `top` lists (layer, value, token, channel), eight at most a layer.
    """
    maximum = np.asarray(maximum, dtype=float)
    n_layers, n_tokens = maximum.shape
    nothing = np.full(maximum.shape, np.nan)
    ranked = {name: np.full((n_layers, 8), fill) for name, fill in TOP.items()}
    for layer in range(n_layers):
        for rank, (_, *cell) in enumerate(each for each in top if each[0] == layer):
            for name, value in zip(TOP, cell, strict=True):
                ranked[name][layer, rank] = value
    of_token, of_rank = ("layer", "token"), ("layer", "rank")
    given = {"attention_write": attention_write, "mlp_write": mlp_write}
    given |= {"cosine": cosine}
    writes = {
        name: (of_token, nothing if value is None else np.asarray(value, dtype=float))
        for name, value in given.items()
    }
    return xr.Dataset(
        {
            "max": (of_token, maximum),
            "max_channel": (of_token, np.asarray(channel, dtype="int32")),
            "median_all": ("layer", np.asarray(median_all, dtype=float)),
            **writes,
            **{name: (of_rank, values) for name, values in ranked.items()},
        },
        coords={
            "layer": np.arange(n_layers),
            "token": np.arange(n_tokens),
            "token_text": ("token", [f"t{token}" for token in range(n_tokens)]),
        },
    )


TOP = {"top_value": np.nan, "top_token": -1, "top_channel": -1}


def trace(**nodes_and_attrs):
    """A trace: Datasets become nodes, anything else an attribute of the root."""
    nodes = {
        name: each
        for name, each in nodes_and_attrs.items()
        if isinstance(each, xr.Dataset)
    }
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {
        name: each for name, each in nodes_and_attrs.items() if name not in nodes
    }
    return tree


def uniform(n_tokens, n_layers=1, n_heads=1):
    """Weights of heads that look at all visible keys alike."""
    rows = np.tril(np.ones((n_tokens, n_tokens)))
    return np.broadcast_to(
        rows / rows.sum(-1, keepdims=True), (n_layers, n_heads, n_tokens, n_tokens)
    ).copy()


def pointing(targets):
    """Weights of one head whose query i puts all mass on key targets[i]."""
    return np.eye(len(targets))[np.asarray(targets)]


def random_weights(seed, n_layers=2, n_heads=3, n_tokens=12):
    """Random causal rows that sum to 1."""
    rng = np.random.default_rng(seed)
    rows = np.tril(rng.gamma(0.3, size=(n_layers, n_heads, n_tokens, n_tokens)) + 1e-6)
    return rows / rows.sum(-1, keepdims=True)
