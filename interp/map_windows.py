"""The attention map of one head at any length: a window of it, at a zoom.

A window is shown in at most `CELLS` x `CELLS` square cells, each with the mean over its
visible pairs and the largest weight; near enough, a cell is one pair and its weight
exact. Wide windows come from a pyramid of block maps that one pass over the tiles
fills, narrow ones from the tiles themselves. Nothing of size query x key is made.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.blocks import Blocks
from interp.calls import KeptCall, keep, require
from interp.errors import InputError, NotCapturedError
from interp.kernels import statistics
from interp.kernels.definitions import BlockMap
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall
from interp.vectors import REMEDY, about, kept, site_of, strings

CELLS = 512
"""Cells of a window along each axis, at most."""

BASE = 2048
"""Blocks of the pyramid's base along the longer axis, at most."""

FINEST = 16
"""Tokens of such a block, at least: narrower windows are as fast from the tiles."""

STRIPE = 1 << 26
"""Pairs of a map between two calls of a progress function."""

Progress = Callable[[int, int], None]
"""Called with the queries done and the queries in all."""


@dataclass(eq=False)
class LongMap:
    """The attention map of one head, to be looked at window by window.

    Made by `interp.long_map` and `interp.long_map_of`.

    Attributes:
        shape: Queries and keys.
        call: The head's attention call, or None where only blocks are known.
        lse: Row log-sum-exp of it.
        base: The finest blocks of the whole map, once they are made.
        tokens: Strings of the queries and of the keys; empty where they are none.
        attrs: Model, text, site, layer and head.
    """

    shape: tuple[int, int]
    call: AttentionCall | None
    lse: Float[Tensor, "1 1 query"] | None
    base: Blocks | None
    tokens: tuple[tuple[str, ...], tuple[str, ...]]
    attrs: dict[str, Any]
    _levels: dict[int, Blocks] = field(default_factory=dict, init=False, repr=False)

    def window(
        self,
        q0: int = 0,
        q1: int | None = None,
        k0: int = 0,
        k1: int | None = None,
        *,
        cells: int = CELLS,
    ) -> xr.Dataset:
        """The cells that cover queries q0 to q1-1 and keys k0 to k1-1.

        Args:
            q0: First query.
            q1: The query after the last; None for all.
            k0: First key.
            k1: The key after the last; None for all.
            cells: Cells along each axis, at most.

        Returns:
            `block_mean`, `block_max` (fractions; NaN where no pair is visible) and
            `pairs` over (query_block, key_block), with the first token of each cell as
            coordinates `query` and `key`, and the `size` of a cell in tokens in the
            attributes: 1 where cells are single, exact weights. Cells begin at
            multiples of their size, so that a window may begin and end a little
            earlier and later.

        Raises:
            InputError: No such window, or no cells.
        """
        box = self._box(q0, q1, k0, k1)
        if cells < 1:
            raise InputError(f"A window has at least one cell; got cells={cells!r}.")
        size = self.finest
        while max(_cover(*side, size) for side in (box[:2], box[2:])) > cells:
            size *= 2
        rows, columns = (
            slice(low // size, -(-high // size)) for low, high in (box[:2], box[2:])
        )
        if self.call is not None and size < self._base_size:
            blocks = self._tiles(size, rows, columns)
        else:
            blocks = self._level(size).part(rows, columns)
        return self._labelled(blocks, rows.start * size, columns.start * size)

    def prepare(self, progress: Progress | None = None) -> None:
        """Fills the base of the pyramid, which the first wide window does otherwise.

        Args:
            progress: Called after each stripe of queries.
        """
        if self.base is None:
            size, (n_query, n_key) = self._base_size, self.shape
            step = max(STRIPE // n_key // size, 1)
            n_rows, n_columns = -(-n_query // size), -(-n_key // size)
            stripes = []
            for row in range(0, n_rows, step):
                rows = slice(row, min(row + step, n_rows))
                stripes.append(self._tiles(size, rows, slice(0, n_columns)))
                if progress is not None:
                    progress(min(rows.stop * size, n_query), n_query)
            arrays = ([s.mean, s.largest, s.pairs] for s in stripes)
            self.base = Blocks(size, *map(torch.cat, zip(*arrays, strict=True)))

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept beside query and key."""
        held = [blocks for blocks in (self.base, *self._levels.values()) if blocks]
        arrays = [a for b in held for a in (b.mean, b.largest, b.pairs)]
        return sum(array.numel() * array.itemsize for array in arrays)

    @property
    def finest(self) -> int:
        """Tokens of the smallest cells that can be shown; 1 are exact weights."""
        return 1 if self.call is not None or self.base is None else self.base.size

    @property
    def _base_size(self) -> int:
        if self.base is not None:
            return self.base.size
        size = FINEST
        while -(-max(self.shape) // size) > BASE:
            size *= 2
        return size

    def _level(self, size: int) -> Blocks:
        """The whole map in blocks of a size."""
        self.prepare()
        assert self.base is not None
        if size == self.base.size:
            return self.base
        if size not in self._levels:
            self._levels[size] = self._level(size // 2).doubled()
        return self._levels[size]

    def _tiles(self, size: int, rows: slice, columns: slice) -> Blocks:
        """Blocks of a window, from query and key."""
        assert self.call is not None
        assert self.lse is not None
        queries, keys = (
            slice(span.start * size, min(span.stop * size, count))
            for span, count in zip((rows, columns), self.shape, strict=True)
        )
        # A rule of its own, which takes with it what rules keep of their windows.
        call = replace(self.call, mask=replace(self.call.mask))
        call = call.narrow(0, queries, keys)
        lse = self.lse[:, :, queries]
        found = statistics.compute(call, [BlockMap(size)], lse=lse)
        pairs = call.mask.pairs_per_block(size)
        arrays = (found["block_mean"], found["block_max"], pairs)
        return Blocks(size, *(each[0, 0].cpu() for each in arrays))

    def _labelled(self, blocks: Blocks, q0: int, k0: int) -> xr.Dataset:
        dims = ("query_block", "key_block")
        named = {
            "block_mean": (blocks.mean, "fraction", "mean weight of the cell"),
            "block_max": (blocks.largest, "fraction", "largest weight of the cell"),
            "pairs": (blocks.pairs, "pairs", "visible pairs of the cell"),
        }
        if blocks.size == 1:
            named |= {
                name: (named[name][0], "fraction", "attention weight")
                for name in ("block_mean", "block_max")
            }
        arrays = {
            name: (dims, values.numpy(), {"units": units, "long_name": about})
            for name, (values, units, about) in named.items()
        }
        coords: dict[str, Any] = {}
        for axis, (name, first) in enumerate((("query", q0), ("key", k0))):
            count = blocks.mean.shape[axis]
            starts = first + blocks.size * np.arange(count)
            coords[name] = (dims[axis], starts)
            if self.tokens[axis]:
                words = [self.tokens[axis][start] for start in starts]
                coords[f"{name}_token"] = (dims[axis], np.array(words, dtype=object))
        lengths = dict(zip(("n_queries", "n_keys"), self.shape, strict=True))
        return xr.Dataset(
            arrays, coords, {**self.attrs, **lengths, "size": blocks.size}
        )

    def _box(
        self, q0: int, q1: int | None, k0: int, k1: int | None
    ) -> tuple[int, int, int, int]:
        n_query, n_key = self.shape
        q1, k1 = (n_query if q1 is None else q1), (n_key if k1 is None else k1)
        if not (0 <= q0 < q1 <= n_query and 0 <= k0 < k1 <= n_key):
            raise InputError(
                f"Queries {q0} to {q1} and keys {k0} to {k1} were asked for; the map "
                f"has {n_query:,} queries and {n_key:,} keys, counted from 0. Choose a "
                "window within it."
            )
        return q0, q1, k0, k1


def long_map(
    model: Any,
    inputs: Any,
    *,
    layer: int,
    head: int,
    site: str = "self",
    tokenizer: Any = None,
    max_tokens: int | None = None,
) -> LongMap:
    """The attention map of one head on a text, by a forward that ends at its layer.

    Args:
        model: What `interp.trace` takes.
        inputs: What `interp.trace` takes; one text.
        layer: Of the head, from 0.
        head: Which one, from 0.
        site: `self`, `cross` or `encoder`.
        tokenizer: For a module that comes without one.
        max_tokens: Keep at most this many tokens.

    Returns:
        The map; nothing of it is computed before a window is asked for. For several
        heads of a layer, `interp.calls.keep` once and `of_call` for each.

    Raises:
        InputError: No such head, several texts, or an intervention that edits weights.
        UnsupportedModelError: The model's attention cannot be reached.
    """
    call = keep(
        model,
        inputs,
        layer=layer,
        site=site,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
    )
    return of_call(call, head)


def of_call(call: KeptCall, head: int) -> LongMap:
    """The map of one head of an attention call that is kept.

    Raises:
        InputError: There is no such head.
    """
    own, lse = call.of_head(head)
    shape = own.mask.query_length, own.mask.key_length
    tokens = call.query_tokens, call.key_tokens
    return LongMap(shape, own, lse, None, tokens, {**call.attrs, "head": head})


def long_map_of(
    trace: xr.DataTree, *, layer: int, head: int, site: str = "self"
) -> LongMap:
    """The attention map of one head that a trace has recorded.

    Args:
        trace: Of one text, traced with `Capture(vectors=True)`, with `BlockMap`, or
            both: a long text's overview is then at hand, and all else exact. Blocks
            alone give the overview alone.
        layer: Of the head, from 0.
        head: Which one, from 0.
        site: `self`, `cross` or `encoder`.

    Raises:
        InputError: No such head, or a trace of several texts.
        NotCapturedError: The trace holds neither.
    """
    node = site_of(trace, site)
    require("Layer", layer, node.sizes.get("layer", 0))
    require("Head", head, node.sizes.get("head", 0))
    try:
        found = of_call(kept(trace, layer=layer, site=site), head)
    except NotCapturedError:
        if "block_mean" not in node:
            raise
        found = None
    if "block_mean" not in node:
        assert found is not None
        return found
    own = node.isel(layer=layer, head=head)
    size = int(node["block_mean"].attrs["size"])
    if found is not None:
        assert found.call is not None
        if size & (size - 1) == 0:  # as the sizes of a window's cells are
            found.base = _recorded(own, size, found.call.mask)
        return found
    tokens = strings(node, "query"), strings(node, "key")
    n_tokens = int(trace.attrs["n_tokens"])
    shape = (node.sizes.get("query", n_tokens), node.sizes.get("key", n_tokens))
    base = _recorded(own, size, _rule(own, site, *shape))
    return LongMap(
        shape, None, None, base, tokens, {**about(trace, site, layer), "head": head}
    )


def _rule(head: xr.Dataset, site: str, n_query: int, n_key: int) -> MaskRule:
    """Which pairs exist, as far as a trace without vectors tells."""
    if site == "cross":
        return MaskRule.full(n_query, n_key)
    window = float(head.coords.get("window", np.nan))
    behind = None if np.isnan(window) else int(window) - 1
    return MaskRule(
        n_query, n_key, ahead=None if site == "encoder" else 0, behind=behind
    )


def _recorded(head: xr.Dataset, size: int, mask: MaskRule) -> Blocks:
    """The block map of a trace.

    Raises:
        NotCapturedError: The rule does not say which of its blocks are empty.
    """
    mean, largest = (
        torch.from_numpy(head[name].values) for name in ("block_mean", "block_max")
    )
    pairs = replace(mask).pairs_per_block(size)[0, 0]
    if pairs.shape != mean.shape or not torch.equal(pairs == 0, mean.isnan()):
        raise NotCapturedError(
            "A map was asked for of which the trace holds blocks alone, and the pairs "
            f"that exist do not follow from its labels. {REMEDY}"
        )
    return Blocks(size, mean, largest, pairs)


def _cover(low: int, high: int, size: int) -> int:
    """Blocks that a range touches."""
    return -(-high // size) - low // size
