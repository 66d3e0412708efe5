"""Names of heads and ordered sets of them; knows the grid of heads, not the model."""

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.anatomy import Anatomy
from interp.errors import InputError, UnsupportedModelError

_HEAD = re.compile(r"\s*L(\d+)\.H(\d+)\s*", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class HeadId:
    """One query head, written `L12.H7`; both counts start at 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        """The name that `parse` reads."""
        return f"L{self.layer}.H{self.head}"

    @classmethod
    def parse(cls, text: str) -> "HeadId":
        """Read `L12.H7`.

        Raises:
            InputError: The text is not a head's name.
        """
        match = _HEAD.fullmatch(text)
        if match is None:
            raise InputError(
                f"a head is written L12.H7 (layer 12, head 7, both from 0); got "
                f"'{text}'. Write it like that, several with commas between."
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class HeadGrid:
    """The heads there are at one site: every layer has the same number.

    Attributes:
        n_layers: Layers, from 0.
        n_heads: Query heads of a layer.
        n_kv_heads: Key and value heads of a layer; divides `n_heads`.
        site: `self`, `cross` or `encoder`.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    site: str = "self"

    def __post_init__(self) -> None:
        """Refuse counts that no model has."""
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or (
            self.n_heads % self.n_kv_heads
        ):
            raise InputError(
                "a grid of heads needs positive counts, KV heads dividing the heads; "
                f"got {self.n_layers} layers, {self.n_heads} heads, "
                f"{self.n_kv_heads} KV heads. Take them from the model's Anatomy."
            )

    @classmethod
    def of(
        cls, source: "Anatomy | xr.DataArray | HeadGrid", site: str = "self"
    ) -> "HeadGrid":
        """The grid of a model's site, or of a signal over (layer, head).

        A signal tells its KV heads by a `kv_head` coordinate (else every head has its
        own) and its site by the attribute `site`; `site` here is for an Anatomy.

        Raises:
            UnsupportedModelError: Layers of the site differ in their heads.
        """
        if isinstance(source, HeadGrid):
            return cls(source.n_layers, source.n_heads, source.n_kv_heads, source.site)
        if isinstance(source, xr.DataArray):
            signal = _over_heads(source)
            n_heads = int(signal["head"].max()) + 1
            kv_heads = signal.coords.get("kv_head")
            return cls(
                n_layers=int(signal["layer"].max()) + 1,
                n_heads=n_heads,
                n_kv_heads=n_heads if kv_heads is None else int(kv_heads.max()) + 1,
                site=signal.attrs.get("site", site),
            )
        modules = source.at(site)
        counts = {(each.n_heads, each.n_kv_heads) for each in modules}
        if len(counts) > 1:
            raise UnsupportedModelError(
                f"heads are named on a grid of layers x heads; at '{site}' this "
                f"{source.model_type} model's layers have (heads, KV heads) of "
                f"{sorted(counts)}. Choose a model whose layers are alike."
            )
        return cls(len(modules), *counts.pop(), site=site)

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    def __iter__(self) -> Iterator[HeadId]:
        """Every head, layer by layer."""
        for layer in range(self.n_layers):
            for head in range(self.n_heads):
                yield HeadId(layer, head)


@dataclass(frozen=True, eq=False)
class HeadSet(Set[HeadId]):
    """Heads of one grid, each once, in a fixed order.

    Two sets are equal when they hold the same heads of the same grid, in any order.
    `|`, `&` and `-` keep the order of the left set, then of the right.

    Attributes:
        heads: The heads, in order.
        grid: The heads that exist.
    """

    heads: tuple[HeadId, ...]
    grid: HeadGrid

    def __post_init__(self) -> None:
        """Drop repetitions; refuse a head that does not exist."""
        object.__setattr__(self, "heads", tuple(dict.fromkeys(self.heads)))
        for each in self.heads:
            if not (
                0 <= each.layer < self.grid.n_layers
                and 0 <= each.head < self.grid.n_heads
            ):
                raise InputError(
                    f"head {each} was asked for; at '{self.grid.site}' there are "
                    f"layers L0 to L{self.grid.n_layers - 1} with heads H0 to "
                    f"H{self.grid.n_heads - 1}. Choose a head within them."
                )

    @classmethod
    def of(
        cls,
        heads: Iterable[HeadId | tuple[int, int]],
        source: Anatomy | xr.DataArray | HeadGrid,
        site: str = "self",
    ) -> "HeadSet":
        """Heads by number, on the grid of a model or a signal.

        Raises:
            InputError: A head does not exist.
        """
        ids = (h if isinstance(h, HeadId) else HeadId(*h) for h in heads)
        return cls(tuple(ids), HeadGrid.of(source, site))

    @classmethod
    def parse(
        cls,
        text: str,
        source: Anatomy | xr.DataArray | HeadGrid,
        site: str = "self",
    ) -> "HeadSet":
        """Read `L1.H2,L3.H4`.

        Raises:
            InputError: A name is malformed, or no such head exists.
        """
        return cls.of(map(HeadId.parse, text.split(",")), source, site)

    @classmethod
    def top(
        cls,
        signal: xr.DataArray,
        k: int | None = None,
        share: float | None = None,
        largest: bool = True,
    ) -> "HeadSet":
        """The heads with the largest (or smallest) values, the most extreme first.

        NaN is never chosen; of equals the earlier layer, then the earlier head, wins.

        Args:
            signal: Values over (layer, head).
            k: How many heads; give this or `share`.
            share: Fraction, in (0, 1], of the heads that have a value; rounded, at
                least one head.
            largest: Take the largest; otherwise the smallest.

        Raises:
            InputError: Not exactly one of `k` and `share`, or more than there are.
        """
        values = _over_heads(signal).transpose("layer", "head")
        flat = np.asarray(values, dtype=float).ravel()
        n_valued = int(np.count_nonzero(~np.isnan(flat)))
        if (k is None) == (share is None):
            raise InputError(
                f"top needs either k or share; got k={k}, share={share}. "
                "Give one of them."
            )
        if share is not None and not 0 < share <= 1:
            raise InputError(
                f"share is a fraction in (0, 1]; got {share}. Write 5% as 0.05."
            )
        if share is not None and n_valued:
            k = max(1, round(share * n_valued))
        if k is None or not 1 <= k <= n_valued:
            raise InputError(
                f"the top {'share' if k is None else k} of the heads was asked for; "
                f"{n_valued} of {flat.size} heads have a value. "
                f"Choose k between 1 and {n_valued}."
            )
        order = np.argsort(-flat if largest else flat, kind="stable")[:k]
        layers, heads = np.unravel_index(order, values.shape)
        layer_ids, head_ids = values["layer"].values, values["head"].values
        return cls(
            tuple(
                HeadId(int(layer_ids[layer]), int(head_ids[head]))
                for layer, head in zip(layers, heads, strict=True)
            ),
            HeadGrid.of(signal),
        )

    def random_like(
        self,
        seed: int,
        exclude: "HeadSet | None" = None,
        overlap: bool = False,
    ) -> "HeadSet":
        """A control: as many heads in each layer, drawn without replacement.

        Args:
            seed: Of the draw; the same seed gives the same heads.
            exclude: Heads that must not be drawn either.
            overlap: Where a layer has too few other heads, draw from all its heads
                that are not in `exclude`, this set's own included.

        Raises:
            InputError: A layer has too few heads to draw from.
        """
        rng = np.random.default_rng(seed)
        excluded = set(exclude) if exclude is not None else set[HeadId]()
        drawn: list[HeadId] = []
        for layer, heads in self.by_layer().items():
            row = [HeadId(layer, head) for head in range(self.grid.n_heads)]
            allowed = [each for each in row if each not in excluded]
            others = [each for each in allowed if each not in self]
            pool = allowed if overlap and len(others) < len(heads) else others
            if len(pool) < len(heads):
                raise InputError(
                    f"a control for {len(heads)} heads of layer {layer} was asked for; "
                    f"{len(pool)} of its {self.grid.n_heads} heads may be drawn. "
                    "Choose fewer heads, exclude fewer, or pass overlap=True."
                )
            picks = rng.choice(len(pool), size=len(heads), replace=False)
            drawn.extend(pool[pick] for pick in sorted(picks))
        return type(self)(tuple(drawn), self.grid)

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Layer to its heads, both ascending; layers without a head are left out."""
        rows: dict[int, tuple[int, ...]] = {}
        for each in sorted(self.heads):
            rows[each.layer] = (*rows.get(each.layer, ()), each.head)
        return rows

    @property
    def kv_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, KV head) of every group that the set touches, in the set's order."""
        pairs = ((each.layer, each.head // self.grid.group) for each in self.heads)
        return tuple(dict.fromkeys(pairs))

    def as_kv_groups(self) -> "HeadSet":
        """The set with every touched group complete: all heads that share a KV head."""
        group = self.grid.group
        heads = (
            HeadId(layer, kv_head * group + offset)
            for layer, kv_head in self.kv_heads
            for offset in range(group)
        )
        return type(self)(tuple(heads), self.grid)

    def __contains__(self, head: object) -> bool:
        """Whether the set holds this head."""
        return head in self.heads

    def __iter__(self) -> Iterator[HeadId]:
        """The heads in order."""
        return iter(self.heads)

    def __len__(self) -> int:
        """Number of heads."""
        return len(self.heads)

    def __str__(self) -> str:
        """The list that `parse` reads."""
        return ",".join(map(str, self.heads))

    def __eq__(self, other: object) -> bool:
        """Same heads of the same grid, in any order."""
        if not isinstance(other, HeadSet):
            return NotImplemented
        return self.grid == other.grid and set(self.heads) == set(other.heads)

    def __hash__(self) -> int:
        """Independent of order, as equality is."""
        return hash((self.grid, frozenset(self.heads)))

    def __or__(self, other: "HeadSet") -> "HeadSet":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Heads of either set."""
        return self._combined(other, (*self.heads, *other.heads))

    def __and__(self, other: "HeadSet") -> "HeadSet":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Heads of both sets."""
        return self._combined(other, filter(set(other.heads).__contains__, self.heads))

    def __sub__(self, other: "HeadSet") -> "HeadSet":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Heads of this set that the other does not hold."""
        theirs = set(other.heads)
        return self._combined(other, (h for h in self.heads if h not in theirs))

    def _combined(self, other: "HeadSet", heads: Iterable[HeadId]) -> "HeadSet":
        if self.grid != other.grid:
            raise InputError(
                f"two sets of heads of one grid were to be combined; got {self.grid} "
                f"and {other.grid}. Take both from the same model and site."
            )
        return type(self)(tuple(heads), self.grid)


def _over_heads(signal: xr.DataArray) -> xr.DataArray:
    if set(signal.dims) != {"layer", "head"}:
        raise InputError(
            f"heads are chosen by an array over (layer, head); got {signal.dims}. "
            "Reduce the other dimensions first, for example with .mean('sample')."
        )
    return signal
