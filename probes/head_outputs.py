"""How much each head writes: the magnitude of its output before the projection."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from interp.forward import evaluating, lean
from interp.inputs import prepare
from interp.models import Model
from interp.probes.experiment import Experiment, Progress
from interp.probes.reading import Bootstrap
from interp.tap import Visit, tap
from interp.tasks.reading import shipped
from interp.tasks.texts import Texts


def output_norms(
    model: Model, inputs: Any, *, max_tokens: int | None = None, site: str = "self"
) -> xr.DataArray:
    """Sum of magnitudes of what each head gives to the output projection.

    One forward, under whatever interventions are in force.

    Args:
        model: From `interp.load`.
        inputs: What `interp.trace` takes.
        max_tokens: Keep at most this many tokens of each text.
        site: Attention site.

    Returns:
        `output_norm` (layer, head, query), with a leading `sample` for several texts;
        the L1 norm over the head's width, in the model's own unit. NaN for padding.

    Raises:
        InputError: The text is empty, too long, or cannot be read.
        UnsupportedModelError: The model's attention cannot be reached, or it has no
            such site.
    """
    model.anatomy.require_attention()
    sites = model.anatomy.at(site)  # type: ignore[arg-type]
    prepared = prepare(model, inputs, max_tokens)
    layers: list[xr.DataArray] = []

    def visit(seen: Visit) -> None:
        if seen.site.name == site:
            layers.append(_own_frame(seen))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model.module))
        padding = prepared.decoder.real
        tapped = tap(model.module, visit, anatomy=model.anatomy, padding=padding)
        stack.enter_context(tapped)
        model.module(**prepared.forward, **lean(model.module))
    found = xr.concat(layers, "layer", join="outer").assign_coords(
        layer=np.arange(len(layers)), query=np.arange(layers[0].sizes["query"])
    )
    group = sites[0].n_heads // sites[0].n_kv_heads
    found = found.assign_coords(kv_head=("head", found["head"].values // group))
    found = found.rename("output_norm").transpose("sample", "layer", "head", "query")
    found.attrs = {"units": "activation", "long_name": "L1 norm of the head's output"}
    return found if prepared.is_batch else found.isel(sample=0)


def _own_frame(seen: Visit) -> xr.DataArray:
    """Norms (sample, head, query) of each text from its first token on."""
    wide = torch.promote_types(seen.output.dtype, torch.float32)
    norms = seen.output.abs().sum(-1, dtype=wide).cpu()
    framed = torch.full_like(norms, torch.nan)
    for sample, queries, _ in seen.call.samples():
        own = norms[sample, :, queries]
        framed[sample, :, : own.shape[1]] = own
    heads = np.arange(framed.shape[1])
    dims = "sample", "head", "query"
    return xr.DataArray(framed.numpy(), dims=dims, coords={"head": heads})


@dataclass(frozen=True)
class SpAttenHeads(Experiment):
    """Magnitude of what a head writes, cumulated over layers."""

    texts: Sequence[str] = ()
    """What is read; nothing stands for the shipped text."""
    max_tokens: int = 512
    """Tokens of a stretch of text, each a run."""

    name = "spatten_heads"
    unit = "activation"
    long_name = "cumulative head importance"
    description = (
        "Mean magnitude, summed over its width, of what the head of this number writes "
        "in this layer and all earlier ones."
    )
    source = (
        "SpAtten, arXiv:2012.09852: magnitudes of the head's output, summed over "
        "queries and layers; divided by the queries, so that texts compare, and "
        "without the pruning that it decides"
    )

    def run(
        self,
        model: Model,
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """Runs the model once on each stretch of text.

        Returns:
            As every experiment, and `head_magnitude` (layer, head), not cumulated.

        Raises:
            InputError: The model has no tokenizer, or a text is too short.
            UnsupportedModelError: The model's attention cannot be reached.
        """
        texts = self.texts or (shipped(),)
        task = Texts({str(i): text for i, text in enumerate(texts)}, self.max_tokens)
        items = task.items(model)
        runs = []
        for done, item in enumerate(items, 1):
            norms = output_norms(model, list(item.ids))
            runs.append(norms.mean("query", dtype="float64"))
            if progress is not None:
                progress(self.name, done, len(items))
        along = f"{self.name}_run"
        names = np.array([item.name for item in items], dtype=object)
        each = xr.concat(runs, along).assign_coords({along: names})
        total = each.cumsum("layer").assign_coords(each.coords)
        magnitude = each.mean(along).assign_attrs(
            units=self.unit, long_name="mean magnitude of the head's output"
        )
        found = {
            self.name: self.labelled(total.mean(along)),
            f"{self.name}_runs": total,
            "head_magnitude": magnitude,
        }
        if len(items) > 1:
            bounds = (bootstrap or Bootstrap()).interval(total, along)
            found[f"{self.name}_interval"] = bounds
        return xr.Dataset(found)

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every experiment; of the texts, how many there are."""
        return super().labelled(values).assign_attrs(texts=len(self.texts or ("",)))
