"""Who writes a massive activation, down to single neurons, and who erases it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.capture import Capture
from interp.errors import InputError
from interp.interventions.weights import Weight
from interp.probes.activations import FLOOR, RATIO, MassiveActivations, runs
from interp.probes.contributions import HALVES, Look
from interp.probes.reading import Bootstrap, no_interval
from interp.probes.text_experiment import TextExperiment
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model

TOP = 4
"""Neurons that are named."""

SHARE = 0.1
"""Share of what was written from which a single weight may be a super weight; share of
the peak from which what is taken counts as erased."""
RANK = 10
"""Place by magnitude down to which it may be one."""

RUN = ("channel", "token", "token_text", "first_layer", "last_layer", "peak")

COLUMNS = (
    "role",
    *RUN,
    "block",
    "half",
    "written",
    "neuron",
    "activation",
    "weight",
    "weight_rank",
    "contribution",
    "share",
)

WRITER = ("role", "channel", "block", "half", "neuron")
"""What makes rows of several texts one."""
MEANS = ("peak", "written", "contribution", "weight", "weight_rank")
COORDS = {
    **dict.fromkeys(("role", "half"), object),
    **dict.fromkeys(("channel", "block", "neuron", "n_texts"), int),
    **dict.fromkeys(MEANS, float),
}
"""What a node of an atlas says of each writer, and how it is stored."""
NO_NEURON = -1
"""In place of a neuron, where attention writes."""


def writers(
    model: "Model",
    inputs: Any,
    *,
    criterion: MassiveActivations | None = None,
    max_tokens: int | None = None,
    top: int = TOP,
) -> pd.DataFrame:
    """The half of a block that writes each massive activation, and its neurons.

    Likewise the one that erases it: that takes most from it, from its peak until it is
    massive no more, and a tenth of the peak at least. Where the median grew, there is
    none.

    Args:
        model: As `interp.load` returns it.
        inputs: One text, or its token ids.
        criterion: When a cell is massive; None takes the paper's.
        max_tokens: Keep at most this many tokens.
        top: Neurons that are named.

    Returns:
        A row a neuron, the largest contribution first, of each role of each run of
        `interp.probes.activations.runs`, in its order: `role` ("writer", "eraser");
        the run's channel, token, token_text, first_layer, last_layer (0 is the
        embedding) and signed `peak`; `block` and `half` ("mlp", or "attention", in one
        row without a neuron); `written`, what the half added to the cell; `neuron`,
        its `activation`, its `weight` to the channel, the `weight_rank` of that by
        magnitude in the whole matrix, from 1, and its `contribution` to `written`, of
        which it is the `share`.

    Raises:
        InputError: Several texts, or what `interp.trace` refuses.
        UnsupportedModelError: A block does more than add its halves to the stream, or
            the MLP that writes has no single down projection.

    Source:
        Massive activations: arXiv:2402.17762. The weights behind: arXiv:2411.07191.
    """
    capture = Capture((), None, residual=True)
    traced = trace(model, inputs, capture=capture, max_tokens=max_tokens)
    if "sample" in traced["residual"].dims:
        raise InputError(
            "The massive activations of one text are explained; got "
            f"{traced['residual'].sizes['sample']} texts. Pass one at a time."
        )
    found = runs(traced, criterion).to_dict("records")
    rows: list[dict[str, Any]] = []
    if found:
        look = Look(model, inputs, [run["token"] for run in found], max_tokens)
        rows = [row for run in found for row in _explained(look, run, top)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"neuron": "Int64", "weight_rank": "Int64"})


def candidates(
    table: pd.DataFrame, share: float = SHARE, rank: int = RANK
) -> tuple[Weight, ...]:
    """Single weights that may carry a massive activation, for `super_weights`.

    Args:
        table: Of `writers`.
        share: Part of what an MLP wrote that at least went through the weight.
        rank: Place among the largest of the matrix that it has at most.

    Returns:
        Block, channel and neuron of each, in the order of the table.
    """
    is_large = (table["share"] >= share) & (table["weight_rank"] <= rank).fillna(False)
    chosen = table[(table["role"] == "writer") & is_large]
    columns = (chosen[name].astype(int) for name in ("block", "channel", "neuron"))
    return tuple(dict.fromkeys(zip(*columns, strict=True)))


def _explained(look: Look, run: dict[str, Any], top: int) -> list[dict[str, Any]]:
    """Rows of one run: its writer, then its eraser where there is one."""
    cell = run["token"], run["channel"]
    stream, written = look.stream(*cell), look.written(*cell)
    peak = stream[run["peak_layer"]]
    # Block l gives layer l + 1 of the stream.
    first = max(run["first_layer"] - 1, 0)
    roles = {
        "writer": (1, first, run["peak_layer"], 0),
        "eraser": (-1, run["peak_layer"], run["last_layer"] + 1, SHARE),
    }
    told = {name: run[name] for name in RUN} | {"peak": peak}
    rows = []
    for role, (sign, begin, end, least) in roles.items():
        change = sign * np.sign(peak) * written[:, begin:end]
        if change.size == 0 or change.max() < least * abs(peak):
            continue
        half, place = np.unravel_index(change.argmax(), change.shape)
        block, name = begin + int(place), HALVES[half]
        own = {"role": role, **told, "block": block, "half": name}
        own["written"] = written[half, block]
        if name == "attention":
            rows.append(own)
            continue
        neurons = look.neurons(block, *cell)
        projection = look.projection(block)
        for each in _largest(neurons, top):
            rank = projection.rank(run["channel"], each["neuron"])
            rows.append(own | each | {"weight_rank": rank})
    return rows


def _largest(neurons: xr.Dataset, top: int) -> list[dict[str, Any]]:
    """The neurons that did most of what the MLP wrote."""
    shares = neurons["contribution"] / neurons.attrs["written"]
    rows = []
    for neuron in (-shares.values).argsort(kind="stable")[:top]:
        one = neurons.isel(neuron=neuron)
        row = {str(name): value.item() for name, value in one.items()}
        rows.append({"neuron": int(neuron), **row, "share": shares.values[neuron]})
    return rows


@dataclass(frozen=True)
class Writers(TextExperiment):
    """The neurons that write and that erase massive activations, over texts."""

    ratio: float = RATIO
    """As in `MassiveActivations`."""
    floor: float = FLOOR
    """The same."""
    top: int = TOP
    """Neurons that are named, of each role and text."""

    name = "writers"
    unit = "fraction"
    long_name = "share of what the MLP writes"
    description = (
        "Share of what the MLP of a block adds to a massive activation, or takes from "
        "it, that comes from this one neuron."
    )
    source = (
        "Massive activations (arXiv:2402.17762); the weights behind them "
        "(arXiv:2411.07191)"
    )

    def __call__(
        self, model: "Model", inputs: Any, *, max_tokens: int | None = None
    ) -> pd.DataFrame:
        """As `writers`."""
        criterion = MassiveActivations(ratio=self.ratio, floor=self.floor)
        return writers(
            model, inputs, criterion=criterion, max_tokens=max_tokens, top=self.top
        )

    def over_texts(
        self, found: Mapping[str, pd.DataFrame], bootstrap: Bootstrap
    ) -> dict[str, xr.Dataset]:
        """The neurons of all texts together, in a node of their own.

        Where a text has several tokens with the same writer, that of the largest peak
        counts.

        Args:
            found: What each text gave, by the text's name.
            bootstrap: How intervals over texts are made.

        Returns:
            `writers`: over (writer), writers before erasers, what moves most first,
            `writers`, the mean share over the texts that name the neuron, NaN where
            attention writes; `writers_interval` (writer, bound); `writers_texts`
            (writers_text, writer). Coordinates `role`, `channel`, `block`, `half`,
            `neuron` (-1 where attention writes), its `weight` to the channel and
            `weight_rank`; over the texts that name it, `n_texts`, the mean `peak` of
            the cell, of what the half has `written`, and `contribution` of the neuron.

        Raises:
            InputError: No activation is massive in any text.
        """
        rows: dict[tuple, dict[str, dict[str, Any]]] = defaultdict(dict)
        for text, table in found.items():
            plain = table.astype({"neuron": float, "weight_rank": float})
            for row in plain.to_dict("records"):
                neuron = NO_NEURON if np.isnan(row["neuron"]) else int(row["neuron"])
                writer = *(row[name] for name in WRITER[:-1]), neuron
                rows[writer].setdefault(text, {str(k): v for k, v in row.items()})
        if not rows:
            raise InputError(
                "Neurons were asked for that write massive activations; of "
                f"{len(found)} read texts none has an activation above {self.floor:g} "
                f"and {self.ratio:g} times the median of its layer. Writers(ratio=100) "
                "also takes smaller ones."
            )
        writers = [
            dict(zip(WRITER, writer, strict=True))
            | {name: np.mean([row[name] for row in each.values()]) for name in MEANS}
            | {"n_texts": len(each)}
            | {"shares": [each.get(text, {}).get("share", np.nan) for text in found]}
            for writer, each in rows.items()
        ]
        writers.sort(key=_moves_most)
        shares = xr.DataArray(
            np.array([each["shares"] for each in writers], dtype=float),
            dims=("writer", "writers_text"),
            coords={"writers_text": np.array([*found], dtype=object)},
        )
        return {self.name: self._labelled(writers, shares, bootstrap)}

    def _labelled(
        self,
        writers: list[dict[str, Any]],
        shares: xr.DataArray,
        bootstrap: Bootstrap,
    ) -> xr.Dataset:
        """The node, with names and units."""
        n, how = shares.sizes["writers_text"], "none: one text"
        mean = shares.mean("writers_text")
        bounds = no_interval(mean)
        if n > 1:
            how = bootstrap.says(f"{n} texts")
            bounds = bootstrap.interval(shares, "writers_text")
        said = {"units": self.unit, "long_name": self.long_name, "interval": how}
        about = {name: getattr(self, name) for name in ("source", "description")}
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        columns = {
            name: ("writer", np.array([each[name] for each in writers], dtype=kind))
            for name, kind in COORDS.items()
        }
        return xr.Dataset(
            {
                self.name: mean.assign_attrs(said, **about, **options),
                f"{self.name}_interval": bounds.assign_attrs(said),
                f"{self.name}_texts": shares.assign_attrs(said),
            },
            coords=columns,
        )


def _moves_most(writer: dict[str, Any]) -> tuple[bool, float]:
    """Writers first, and of each role what moves the cell most."""
    by_neuron = writer["neuron"] != NO_NEURON
    moved = writer["contribution"] if by_neuron else writer["written"]
    return writer["role"] != "writer", -abs(moved)
