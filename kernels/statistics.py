"""The door: score statistics of an attention call, by the implementation that fits."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels import availability, reference, tiled, weighted
from interp.kernels import definitions as d
from interp.kernels.errors import ShapeError
from interp.kernels.rules import AttentionCall
from interp.kernels.samples import scatter

Implementation = Callable[[AttentionCall, Sequence[d.Statistic], Tensor | None], dict]

EDGE_LIMIT = 64
"""Targets of one query that an edge may name."""


def _reference(
    call: AttentionCall, wanted: Sequence[d.Statistic], lse: Tensor | None
) -> dict[str, Tensor]:
    return reference.statistics(call, tuple(wanted))


def _tiled(
    call: AttentionCall, wanted: Sequence[d.Statistic], lse: Tensor | None
) -> dict[str, Tensor]:
    return tiled.statistics(call, wanted, lse)


def _triton(
    call: AttentionCall, wanted: Sequence[d.Statistic], lse: Tensor | None
) -> dict[str, Tensor]:
    from interp.kernels import triton_statistics  # not every machine has Triton

    return triton_statistics.statistics(call, wanted, lse)


def _weighted(
    call: AttentionCall, wanted: Sequence[d.Statistic], lse: Tensor | None
) -> dict[str, Tensor]:
    return weighted.attend(call, wanted)[2]


IMPLEMENTATIONS: dict[str, Implementation] = {
    "triton": _triton,
    "tiled": _tiled,
    "weighted": _weighted,
    "reference": _reference,
}
"""By the name that `impl` takes; provenance repeats it."""


def choose(impl: str, call: AttentionCall) -> str:
    """The implementation that `impl` stands for: "auto" takes the fastest.

    Raises:
        KernelUnavailableError: There is none of that name, or it cannot run here.
    """
    if impl == "auto":
        if availability.suits_triton(call):
            return "triton"
        return "weighted" if weighted.is_fastest(call) else "tiled"
    availability.require(impl, IMPLEMENTATIONS, call, instead="tiled")
    return impl


def compute(
    call: AttentionCall,
    statistics: Iterable[d.Statistic],
    *,
    lse: Float[Tensor, "batch head query"] | None = None,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """Score statistics of every head of one attention call.

    Args:
        call: Query, key, value and the rules between them.
        statistics: What to compute; together they take one pass.
        lse: Row log-sum-exp in nats without a learned sink, as the fused kernels
            return it; computed in a pass of its own when None.
        impl: "triton" (GPUs), "tiled" (any device, given lse), "weighted" (makes the
            output as well), "reference" (dense), or "auto".

    Returns:
        Arrays `[batch, head, ...]` by name, in the units of their definitions. Rows
        that see no key, and keys that no query sees, are NaN (-1 for indices).

    Raises:
        ShapeError: lse does not fit; a statistic compares positions that have
            nothing to do with each other.
        KernelUnavailableError: `impl` names nothing, or what cannot run here; the
            device has no memory left for it.
    """
    wanted = d.merged(statistics)
    _check(call, wanted, lse)
    chosen = choose(impl, call)
    if impl == "auto" and chosen == "weighted" and lse is not None:
        chosen = "tiled"  # the other would make the norm that is at hand
    work = IMPLEMENTATIONS[chosen]
    parts = []
    with torch.no_grad():
        for sample, queries, keys in call.samples():
            one = call.narrow(sample, queries, keys)
            own_lse = None if lse is None else lse[sample : sample + 1, :, queries]
            own = [s.narrow(sample, queries, keys) for s in wanted]
            parts.append(work(one, own, own_lse))
    return scatter(call, wanted, parts)


def _check(
    call: AttentionCall, wanted: Sequence[d.Statistic], lse: Tensor | None
) -> None:
    shape = tuple(call.query.shape[:3])
    if lse is not None and tuple(lse.shape) != shape:
        raise ShapeError(
            f"lse needs the query's [batch, head, query] = {shape}; got "
            f"{tuple(lse.shape)}. Pass the kernel's own, or None."
        )
    if not call.comparable:
        lost = [s.name for s in wanted if s.positional]
        if lost:
            raise ShapeError(
                f"{', '.join(lost)} compare positions of query and key, which have "
                "none in common in cross-attention. Leave them out there."
            )
    for statistic in wanted:
        for label, rows in statistic.targets if isinstance(statistic, d.Edges) else ():
            if not isinstance(rows, int):
                n_targets = torch.as_tensor(rows).shape[-1]
                if n_targets > EDGE_LIMIT:
                    raise ShapeError(
                        f"Edge {label!r} names {n_targets} targets a query; at most "
                        f"{EDGE_LIMIT} are gathered. Split it into several edges."
                    )
