"""Random heads beside those that are ablated: as many in each layer."""

import math
from dataclasses import dataclass

from interp.errors import InputError
from interp.heads import HeadGrid, HeadId, HeadSet

CONTROLS = 20
"""Random controls, at least: the smallest p that they allow is 1 in 21."""


@dataclass(frozen=True)
class Controls:
    """Random heads beside some heads: as many in each layer."""

    drawn: tuple[HeadSet, ...]
    notes: tuple[str, ...]
    """What a reader has to know of them."""

    @classmethod
    def of(
        cls, heads: HeadSet, n: int | None, seed: int, *, groups: bool = False
    ) -> "Controls":
        """Different draws, none of them the heads themselves.

        Args:
            heads: What is ablated.
            n: How many; None for 20, or all there are where layers allow fewer.
            seed: Of the first; each further draw takes the next seed.
            groups: Draw whole KV groups.

        Raises:
            InputError: More than there are, or fewer than 20 of those that there are.
        """
        units = _groups_of(heads) if groups else heads
        n_distinct, tight = _n_distinct(units)
        if n is not None and n > n_distinct:
            raise InputError(
                f"{n} random controls for {len(heads)} heads were asked for; their "
                f"layers allow {n_distinct} different ones. Ask for --controls "
                f"{n_distinct} or 0."
            )
        if n is not None and 0 < n < min(CONTROLS, n_distinct):
            raise InputError(
                f"{n} random controls were asked for; fewer than {CONTROLS} tell "
                f"little. Ask for --controls {min(CONTROLS, n_distinct)} or more, or 0 "
                "for none."
            )
        n = min(CONTROLS, n_distinct) if n is None else n
        found: dict[HeadSet, None] = {}
        while len(found) < n:
            drawn = units.random_like(seed, overlap=True)
            seed += 1
            if drawn != units:
                found[drawn] = None
        drawn = (_heads_of(each, heads.grid) if groups else each for each in found)
        return cls(tuple(drawn), tuple(_notes(n, n_distinct, tight)))


def _notes(n: int, n_distinct: int, tight: list[int]) -> list[str]:
    if not n:
        none = n_distinct == 0
        return [
            "no random controls were drawn"
            + (", since the layers hold no other heads" if none else "")
            + ": whether other heads would do the same is not known"
        ]
    notes = []
    if n < CONTROLS:
        notes.append(
            f"the layers allow {n} different controls, fewer than {CONTROLS}: p "
            f"against them is at least {1 / (n + 1):.2g}"
        )
    if tight:
        layers = ", ".join(f"L{layer}" for layer in tight)
        notes.append(
            f"too few other heads in {layers}: there, controls may hold ablated heads"
        )
    return notes


def _n_distinct(heads: HeadSet) -> tuple[int, list[int]]:
    """Different draws there are but the heads themselves; layers that must overlap."""
    n_heads, ways, tight = heads.grid.n_heads, 1, []
    rows = heads.by_layer()
    for layer, row in rows.items():
        others = n_heads - len(row)
        if others < len(row):
            tight.append(layer)
        ways *= math.comb(others if others >= len(row) else n_heads, len(row))
    return ways - (len(tight) == len(rows)), tight


def _groups_of(heads: HeadSet) -> HeadSet:
    """KV heads as heads of a grid of their own."""
    grid = heads.grid
    own = HeadGrid(grid.n_layers, grid.n_kv_heads, grid.n_kv_heads, grid.site)
    return HeadSet.of(heads.kv_heads, own)


def _heads_of(groups: HeadSet, grid: HeadGrid) -> HeadSet:
    first = (HeadId(each.layer, each.head * grid.group) for each in groups)
    return HeadSet(tuple(first), grid).as_kv_groups()
