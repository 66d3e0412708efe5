"""From statistics of single samples back to arrays over the whole batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.kernels import definitions as d
from interp.kernels.rules import AttentionCall


def scatter(
    call: AttentionCall,
    wanted: Sequence[d.Statistic],
    parts: Sequence[dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Arrays `[batch, head, ...]` with NaN (-1 for indices) where there is padding.

    Blocks of a block map count from each sample's first real token.

    Args:
        call: The call of the whole batch.
        wanted: The statistics computed.
        parts: Arrays `[1, head, ...]` of each sample, padding cut off.
    """
    samples = call.samples()
    if samples == [(0, slice(0, call.query.shape[2]), slice(0, call.key.shape[2]))]:
        return {a.name: parts[0][a.name] for s in wanted for a in s.arrays}
    arrays: dict[str, Tensor] = {}
    for spec in (array for statistic in wanted for array in statistic.arrays):
        whole: Tensor | None = None
        for (sample, queries, keys), part in zip(samples, parts, strict=True):
            own = part[spec.name][0]
            if spec.integer:
                own = torch.where(own >= 0, own + keys.start, own)
            places = [slice(None)]
            shape = [own.shape[0]]
            for axis, dim in enumerate(spec.dims[2:], start=1):
                length, place = own.shape[axis], slice(0, own.shape[axis])
                if dim == "query":
                    length, place = call.mask.query_length, queries
                elif dim == "key":
                    length, place = call.mask.key_length, keys
                elif dim.endswith("_block"):
                    length = max(p[spec.name].shape[axis + 1] for p in parts)
                shape.append(length)
                places.append(place)
            if whole is None:
                empty = -1 if spec.integer else torch.nan
                whole = torch.full(
                    (len(samples), *shape), empty, dtype=own.dtype, device=own.device
                )
            whole[sample][tuple(places)] = own
        assert whole is not None, "a call has at least one sample"
        arrays[spec.name] = whole
    return arrays
