"""`detect`: probes on a trace that is there, or on a model."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import xarray as xr

from interp.errors import NotCapturedError
from interp.probes.atlas import Texts, atlas
from interp.probes.detector import Detector
from interp.probes.registry import Chosen, Probe, resolve
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
        From a model the node `heads` of an atlas, with intervals; and what else was
        asked for, if one node has it: over the tokens of a single text, or `writers`.
        The attribute `skipped` (JSON) says what could not be measured and why.

    Raises:
        InputError: A name that no detector has, or one that is given twice.
        NotCapturedError: The trace lacks what a detector needs that was asked for.
    """
    if not isinstance(source, xr.DataTree):
        texts = shipped() if texts is None else texts
        tree = atlas(source, texts, detectors=detectors, **options)
        return _of_model(tree, () if detectors is None else resolve(detectors))
    found, skipped = {}, []
    for probe in resolve(detectors):
        try:
            if not isinstance(probe, Detector):
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


def _of_model(tree: xr.DataTree, asked: Iterable[Probe]) -> xr.Dataset:
    """What an atlas says of heads, and what was asked for besides."""
    found = tree["heads"].to_dataset()
    skipped = json.loads(tree.attrs["skipped"])
    missing = [probe.name for probe in asked if probe.name not in found]
    for name in missing:
        parts = (name, f"{name}_interval", f"{name}_texts")
        having = [node for node in tree.children.values() if name in node.data_vars]
        if len(having) == 1:
            own = having[0].to_dataset()
            found = found.assign({part: own[part] for part in parts if part in own})
        elif name not in {each["what"] for each in skipped}:
            why = (
                f"{name} is over the tokens of each text: interp.probes.atlas.atlas "
                "keeps it, in a node for every text"
            )
            skipped.append({"what": name, "why": why})
    return found.assign_attrs(skipped=json.dumps(skipped))
