"""Some queries against all the keys that they may see: logits and weights in hand.

A block holds one group of heads, or several that are small. What is made of a call
block by block is exact under any rule, and takes linear memory.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall

ROWS = 128
"""Queries of a block on a CPU, unless there are few keys or very many."""

NEAR_CORE = 1 << 18
"""Weights of a block that stay in the cache of one core."""

ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Weights of a block, at most, as long as one row fits."""

WORTH_A_WORKER = 1 << 21
"""Weights that pay for a worker more."""

Job = tuple[slice, list[tuple[int, int]]]
"""Whole groups of heads, and some of their blocks of queries."""


def jobs(call: AttentionCall, share: int = 1) -> tuple[list[Job], int]:
    """The blocks of one sample, shared out.

    Args:
        call: Of one sample.
        share: How many arrays of a block's size are in memory together, counted in
            those of a forward pass.

    Returns:
        The jobs, as many for each range of heads, range after range; and how many
        workers they are for, 0 for none.
    """
    on_cpu = call.query.device.type == "cpu"
    n_queries, n_keys = call.mask.query_length, call.mask.key_length
    width = call.group_size * max(n_keys, 1)
    most = max(ELEMENTS["cpu" if on_cpu else "cuda"] // (width * share), 1)
    step = min(most, max(ROWS, NEAR_CORE // width)) if on_cpu else most
    blocks = [(q0, min(q0 + step, n_queries)) for q0 in range(0, n_queries, step)]
    near = NEAR_CORE // width if on_cpu else most
    heads = call.group_size * max(near // max(min(step, n_queries), 1), 1)
    pairs = call.n_heads * n_queries * n_keys
    n_workers = min(torch.get_num_threads(), 1 + pairs // (2 * WORTH_A_WORKER))
    stripes = max(min(n_workers, len(blocks)), 1) if on_cpu else 1
    found = [
        (slice(first, min(first + heads, call.n_heads)), blocks[stripe::stripes])
        for first in range(0, call.n_heads, heads)
        for stripe in range(stripes)
    ]
    return found, n_workers if on_cpu else 0


def keys_of(call: AttentionCall, heads: slice) -> slice:
    """The key heads of whole groups of heads."""
    return slice(heads.start // call.group_size, heads.stop // call.group_size)


def of_groups(
    rows: Float[Tensor, "head query d"], n_groups: int
) -> Float[Tensor, "group row d"]:
    """The rows of each group's heads, one head under the other."""
    return rows.unflatten(0, (n_groups, -1)).flatten(1, 2)


def products(
    call: AttentionCall,
    block: Block,
    key: Float[Tensor, "kv_head key d"],
    out: Float[Tensor, "head query key"],
) -> None:
    """Writes the products of queries and keys, scaled and capped, without a bias."""
    q0, q1, _, _ = block.box
    score = call.score
    query = call.query[0, block.heads, q0:q1].to(call.dtype) * score.scale
    out_of_groups = out.view(len(key), -1, key.shape[1])
    torch.bmm(of_groups(query, len(key)), key.mT, out=out_of_groups)
    if score.softcap is not None:
        out.div_(score.softcap).tanh_().mul_(score.softcap)


def of_pairs(
    values: Float[Tensor, "1 #heads queries keys"], block: Block
) -> Float[Tensor, "#head query key"]:
    """What a block has of an array over all pairs, as a view."""
    q0, q1, k0, k1 = block.box
    heads = block.heads if values.shape[1] > 1 else slice(None)
    return values[0, heads, q0:q1, k0:k1]


def hide(
    block: Block, logits: Float[Tensor, "head query key"], edits: Sequence[Edit] = ()
) -> bool:
    """Overwrites the logits of pairs that do not exist.

    Args:
        block: Where the logits are.
        logits: After all edits.
        edits: Those, which may have taken pairs away.

    Returns:
        False where every row is sure to see a key.
    """
    q0, q1, k0, _ = block.box
    least = never(logits.dtype)
    hides = any(edit.hides for edit in edits)
    if hides:
        logits.clamp_(min=least)
    for a, b in block.mask.uncertain(*block.box):
        visible = block.mask.tile(q0, q1, a, b)
        if visible is not None:
            own = visible[0] if visible.shape[1] == 1 else visible[0, block.heads]
            hidden = ~own.to(logits.device)
            logits[..., a - k0 : b - k0].masked_fill_(hidden, least)
    return hides or block.mask.may_be_blind(q0, q1)


def normalize(
    logits: Float[Tensor, "head query key"],
    sinks: Float[Tensor, " head"] | None,
    may_be_blind: bool,
    out: Float[Tensor, "head query key"],
) -> Float[Tensor, "head query"]:
    """Writes the weights; the log-sum-exp in nats, without the learned sinks.

    Args:
        logits: With hidden pairs overwritten.
        sinks: Learned sinks of these heads, which take their share.
        may_be_blind: Whether a row may see nothing: weights of 0, and -inf.
        out: Where the weights go.
    """
    torch.softmax(logits, -1, out=out)
    largest = logits.amax(-1)
    lse = largest - out.amax(-1).log()
    if may_be_blind:
        blind = largest <= never(logits.dtype) / 2
        out.masked_fill_(blind[..., None], 0.0)
        lse.masked_fill_(blind, -torch.inf)
    if sinks is not None:
        out.mul_(torch.sigmoid(lse - sinks[:, None])[..., None])
    return lse


def never(dtype: torch.dtype) -> float:
    """Logit of a pair that does not exist: finite, so that 0 * it is 0."""
    return torch.finfo(dtype).min / 4
