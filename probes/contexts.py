"""Whether heads do the same in every run, for every needle and in every text."""

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.probes.needle_runs import ABOVE

KINDS = ("none", "weak", "dynamic", "strong")


def activity(runs: xr.DataArray, above: float = ABOVE) -> xr.Dataset:
    """How often each head is active, and of which kind that makes it.

    A head is active in a run if its score is above 0: it copied at least one token.
    A retrieval head, whose mean score is `above` or more, is `strong` if it is active
    in every run and `dynamic` if it is not; other heads are `weak` if they are active
    in some run, else `none`.

    Args:
        runs: (run, layer, head), such as `retrieval_runs`; NaN runs do not count.
        above: Mean score of a retrieval head.

    Returns:
        `frequency`, the share of runs in which a head is active, and `kind`, both over
        (layer, head).

    Source:
        Retrieval heads (arXiv:2404.15574) 3.3: heads that are active whatever the
        context, and the rest, which other contexts activate. "Always" is meant
        literally here, so more runs make fewer heads strong.
    """
    dim = _along(runs)
    mean, n = runs.mean(dim), runs.count(dim)
    frequency = (runs > 0).sum(dim) / n.where(n > 0)
    retrieves = mean >= above
    rank = (frequency > 0).astype(int) + retrieves + (retrieves & (frequency == 1))
    kind = xr.apply_ufunc(lambda row: np.array(KINDS, dtype=object)[row], rank)
    frequency = frequency.assign_attrs(
        units="fraction", long_name="runs in which the head is active"
    )
    kind = kind.where(n > 0, "").assign_attrs(
        above=above, long_name="dependence on the context"
    )
    return xr.Dataset({"frequency": frequency, "kind": kind})


def universality(
    runs: xr.DataArray, by: str = "seed", above: float = ABOVE
) -> xr.Dataset:
    """Whether the same heads stand out in each text, or for each needle.

    Args:
        runs: (run, layer, head), such as `retrieval_runs`; NaN runs do not count.
        by: What parts the runs, by the end of a coordinate's name: "seed" (each has
            a needle of its own, in turn), "task" (a haystack each), "length", "depth".
        above: Mean score of a retrieval head.

    Returns:
        `score` (part, layer, head), the mean of each part; `correlation`
        (part, other), Pearson's over heads; `n_above` (part), the retrieval heads of
        each; `in_all` (layer, head), whether a head is one in every part.

    Raises:
        InputError: There is no such coordinate, or only one part has runs that count.
    """
    dim = _along(runs)
    name = f"{dim.removesuffix('run')}{by}"
    if name not in runs.coords:
        there = [str(n).removeprefix(dim.removesuffix("run")) for n in runs.coords]
        raise InputError(
            f"Runs were to be parted by {by!r}; they have {', '.join(there)}. Choose "
            "one that differs between runs."
        )
    counted = runs.dropna(dim, how="all")
    score = counted.groupby(name).mean(dim).rename({name: "part"})
    if score.sizes["part"] < 2:
        raise InputError(
            f"Parts were to be compared by {by}; runs of {score.sizes['part']} count. "
            "Measure on two texts or needles at least."
        )
    flat = score.stack(each=("layer", "head")).dropna("each").transpose("part", "each")
    correlation = xr.DataArray(
        np.corrcoef(flat.values),
        dims=("part", "other"),
        coords={"part": score["part"].values, "other": score["part"].values},
    )
    is_above = score >= above
    return xr.Dataset(
        {
            "score": score,
            "correlation": correlation,
            "n_above": is_above.sum(("layer", "head")),
            "in_all": is_above.all("part"),
        },
        attrs={"by": by, "above": above},
    )


def _along(runs: xr.DataArray) -> str:
    """The dimension of the runs."""
    found = [str(dim) for dim in runs.dims if str(dim).endswith("_run")]
    if len(found) != 1 or set(runs.dims) != {*found, "layer", "head"}:
        raise InputError(
            "Runs are compared over (<name>_run, layer, head); got "
            f"{runs.dims}. Take them from an experiment, such as retrieval_runs."
        )
    return found[0]
