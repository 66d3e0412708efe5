"""`detect`: probes on a trace that is there, or on a model."""

import json
from typing import TYPE_CHECKING, Any

import xarray as xr

from interp.errors import NotCapturedError
from interp.probes.atlas import Texts, atlas
from interp.probes.experiment import Experiment
from interp.probes.registry import Chosen, resolve
from interp.tasks.reading import shipped

if TYPE_CHECKING:
    from interp.models import Model


def detect(
    source: "xr.DataTree | Model",
    detectors: Chosen = None,
    *,
    texts: Texts | None = None,
    **options: Any,
) -> xr.Dataset:
    """Run detectors on a trace; or on a model, which experiments need.

    Args:
        source: As `interp.trace` or `interp.load` returns it.
        detectors: Names, detectors and experiments made with other options, or both.
            None runs every detector that the trace can feed; on a model, all that
            cost little.
        texts: What a model reads; None takes the shipped text.
        options: Of `interp.probes.atlas.atlas`, for a model.

    Returns:
        One variable a detector, under its name: over (layer, head), or over tokens.
        From a model the node `heads` of an atlas: (layer, head) only, with intervals.
        The attribute `skipped` (JSON) says what could not be measured and why.

    Raises:
        InputError: A name that no detector has, or one that is given twice.
        NotCapturedError: The trace lacks what a detector needs that was asked for.
    """
    if not isinstance(source, xr.DataTree):
        texts = shipped() if texts is None else texts
        tree = atlas(source, texts, detectors=detectors, **options)
        return tree["heads"].to_dataset().assign_attrs(skipped=tree.attrs["skipped"])
    found, skipped = {}, []
    for probe in resolve(detectors):
        try:
            if isinstance(probe, Experiment):
                raise NotCapturedError(
                    f"{probe.name} takes runs of the model; a trace cannot answer it. "
                    f"Pass the model: detect(model, {probe.name!r})."
                )
            found[probe.name] = probe(source)
        except NotCapturedError as error:
            if detectors is not None:
                raise
            skipped.append({"what": probe.name, "why": str(error)})
    return xr.Dataset(found, attrs={"skipped": json.dumps(skipped)})
