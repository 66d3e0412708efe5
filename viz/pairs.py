"""What is said of every two detectors: sentences on the strongest, a table of all."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.viz.agreement import RHO, SURE
from interp.viz.numbers import NOTHING, decimals, number

Row = dict[str, str]


def told(
    agreement: xr.Dataset, overlaps: pd.DataFrame, titles: dict[str, str]
) -> list[str]:
    """The strongest agreements and disagreements, as sentences.

    Args:
        agreement: As `interp.probes.agreement.agreement` returns it.
        overlaps: As `interp.probes.agreement.overlap` returns it.
        titles: What the detectors are called.
    """
    sure = [pair for pair in _ranked(agreement) if pair["p_holm"].item() < SURE]
    said = []
    for sign, how in ((1, "most alike"), (-1, "most opposed")):
        ranked = [pair for pair in sure if sign * pair["rho"].item() > 0]
        if ranked:
            pair = ranked[0]
            first, second = (titles[name] for name in _names(pair))
            said.append(
                f"{first[:1].upper()}{first[1:]} and {second} rank the heads {how}: "
                f"{RHO} = {decimals(pair['rho'].item())} ({_bounds(pair)}; within "
                f"layers {decimals(pair['rho_within'].item())})."
            )
    if not said:
        said.append("No two surely rank the heads alike or opposed.")
    shared = [row for row in _records(overlaps) if row["p_holm"] < SURE]
    if shared:
        row = min(shared, key=lambda row: (row["p"], row["expected_within"]))
        said.append(
            f"{titles[row['detector']][:1].upper()}{titles[row['detector']][1:]} and "
            f"{titles[row['other']]} share most of their strongest heads: "
            f"{row['overlap']} of {row['size']}, where chance would give "
            f"{number(row['expected'], 2)}, or {number(row['expected_within'], 2)} "
            "with as many in each layer."
        )
    return said


def pair_rows(agreement: xr.Dataset, overlaps: pd.DataFrame) -> list[Row]:
    """A row of the page's table for every pair, the strongest correlation first."""
    shared = {(row["detector"], row["other"]): row for row in _records(overlaps)}
    absent = ("overlap", "expected", "expected_within", "p_overlap")
    rows = []
    for pair in _ranked(agreement):
        names = _names(pair)
        row = {
            "detector": names[0],
            "other": names[1],
            "n_heads": number(pair["n_heads"].item()),
            "rho": decimals(pair["rho"].item()),
            "interval": _bounds(pair),
            "within": decimals(pair["rho_within"].item()),
            "p": _p(pair["p_holm"].item()),
        }
        if names in shared:
            both = shared[names]
            row |= {
                "overlap": f"{both['overlap']} of {both['size']}",
                "expected": number(both["expected"], 2),
                "expected_within": number(both["expected_within"], 2),
                "p_overlap": _p(both["p_holm"]),
            }
        rows.append(dict.fromkeys(absent, NOTHING) | row)
    return rows


def _ranked(agreement: xr.Dataset) -> list[xr.Dataset]:
    """Each pair once, where it has a correlation, the strongest first."""
    cells = combinations(range(agreement.sizes["detector"]), 2)
    pairs = [agreement.isel(detector=row, other=column) for row, column in cells]
    known = [pair for pair in pairs if np.isfinite(pair["rho"].item())]
    return sorted(known, key=lambda pair: -abs(pair["rho"].item()))


def _names(pair: xr.Dataset) -> tuple[str, str]:
    return pair["detector"].item(), pair["other"].item()


def _bounds(pair: xr.Dataset) -> str:
    low, high = (decimals(bound) for bound in pair["rho_interval"].values)
    return f"{low} to {high}" if NOTHING not in (low, high) else NOTHING


def _p(value: float) -> str:
    return "1" if value == 1 else number(value, 2)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): v for key, v in row.items()} for row in table.to_dict("records")]
