"""Every detector on every head of a model, over several texts, with intervals."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from interp import tracing
from interp.capture import Capture, union
from interp.errors import InputError, InterpError
from interp.probes.activations import MassiveActivations
from interp.probes.detector import HEADS, REPEATED_RANDOM, TEXT, Detector
from interp.probes.experiment import Experiment, Progress
from interp.probes.reading import Bootstrap, Reading, no_interval, read, summarize
from interp.probes.registry import Chosen, resolve
from interp.probes.sinks import LearnedSinks, SinkTokens
from interp.probes.text_experiment import TextExperiment, on_texts
from interp.probes.tokens import over_tokens
from interp.tasks import BLOCK, COPIES, repeated_random_for
from interp.uncertainty import BOUNDS

if TYPE_CHECKING:
    from interp.models import Model

Texts = str | Sequence[str] | Mapping[str, str]
"""One text, several, or several by name."""

PROVENANCE = (
    "model",
    "model_hash",
    "model_type",
    "device",
    "dtype",
    "impl",
    "versions",
)


def atlas(
    model: "Model",
    texts: Texts,
    *,
    detectors: Chosen = None,
    seeds: Iterable[int] = (0, 1, 2),
    block: int = BLOCK,
    copies: int = COPIES,
    max_tokens: int | None = None,
    bootstrap: Bootstrap | None = None,
    store: str | Path | None = None,
    resume: bool = True,
    command: str = "",
    progress: Progress | None = None,
    trace: Callable[..., xr.DataTree] = tracing.trace,
) -> xr.DataTree:
    """Run detectors on every head.

    Each text is traced once, with all that its detectors need together. Detectors of
    the task "repeated_random" read a block of random tokens that stands several times,
    traced once for each of `seeds`.

    Args:
        model: As `interp.load` returns it.
        texts: One text, several, or several by name.
        detectors: Names, or detectors and experiments with other options; None is all
            that cost little. Those over tokens set the options of the texts' nodes,
            which every atlas has.
        seeds: Of the repeated random tokens.
        block: Tokens of the random block; fewer where the context is short.
        copies: How many times the block stands.
        max_tokens: Keep at most this many tokens of each text.
        bootstrap: How intervals are made.
        store: Folder for the traces, one store each; None keeps them in memory.
        resume: Go on with what an interrupted run left in `store`.
        command: How to make this atlas again, for the record.
        progress: Told of every layer.
        trace: Traces a model.

    Returns:
        A node `heads`: for each detector its mean over texts (layer, head), its
        `<name>_interval` (layer, head, bound) and `<name>_texts` (text, layer, head).
        Nodes `text_0`, `text_1`, ...: sinks, massive activations and all else that is
        over tokens, token by token. A node `writers`, if asked for: the neurons
        behind massive activations.

    Raises:
        InputError: No text, an unknown detector, or detectors of different sites.
    """
    chosen, seeds = resolve(detectors), tuple(seeds)
    experiments = [probe for probe in chosen if isinstance(probe, Experiment)]
    of_texts = [probe for probe in chosen if isinstance(probe, TextExperiment)]
    read_off = [probe for probe in chosen if isinstance(probe, Detector)]
    of_heads = [detector for detector in read_off if detector.dims == HEADS]
    named = (SinkTokens, MassiveActivations)
    others = [d for d in read_off if d.dims != HEADS and not isinstance(d, named)]
    sinks = SinkTokens(site=_common_site([*of_heads, *others]))
    sinks = next((d for d in chosen if isinstance(d, SinkTokens)), sinks)
    massive = MassiveActivations()
    massive = next((d for d in chosen if isinstance(d, MassiveActivations)), massive)
    bootstrap = bootstrap or Bootstrap()

    skipped: dict[str, str] = {}
    if not any(site.learned_sinks for site in model.anatomy.sites):
        of_heads = [d for d in of_heads if not isinstance(d, LearnedSinks)]
        if any(isinstance(detector, LearnedSinks) for detector in chosen):
            skipped[LearnedSinks.name] = f"{model.name} has no learned sink logits"
    on_text = [detector for detector in of_heads if detector.task == TEXT]
    of_tokens = [sinks, massive, *others]
    jobs = _texts(texts, on_text, needs=union([each.needs for each in of_tokens]))
    n_texts = len(jobs)
    on_random = [detector for detector in of_heads if detector.task == REPEATED_RANDOM]
    if on_random:
        jobs += _repeated_random(
            model, on_random, seeds, block, copies, max_tokens, skipped
        )

    readings, nodes, provenance = [], {}, {}
    for job in jobs:
        traced = trace(
            model,
            job.inputs,
            capture=union([job.needs, *(each.needs for each in job.detectors)]),
            out=None if store is None else Path(store) / f"{job.key}.zarr",
            resume=resume,
            max_tokens=max_tokens,
            name=job.name,
            attrs=job.attrs,
            progress=partial(progress, job.name) if progress else None,
        )
        provenance |= {key: traced.attrs.get(key, "") for key in PROVENANCE}
        reading = read(job.name, traced, job.detectors)
        readings.append(reading)
        for each in json.loads(traced.attrs.get("skipped", "[]")):
            skipped.setdefault(each["what"], each["why"])
        skipped |= reading.skipped
        if job.attrs["task"] == TEXT:
            nodes[job.key] = over_tokens(traced, sinks, massive, others)
            for each in json.loads(nodes[job.key].attrs.pop("skipped")):
                skipped.setdefault(each["what"], each["why"])

    found = _heads(of_heads, readings, bootstrap)
    for detector in of_heads:
        if detector.name in found:
            lines = _python(detector, jobs, block, copies, max_tokens)
            found[detector.name].attrs["python"] = lines
    for each in experiments:
        try:
            found |= _measured(each, model, bootstrap, store, progress)
        except InterpError as error:
            skipped[each.name] = str(error)
    told, why = on_texts(
        of_texts,
        model,
        {job.key: (job.name, job.inputs) for job in jobs[:n_texts]},
        max_tokens=max_tokens,
        bootstrap=bootstrap,
        progress=progress,
    )
    skipped |= why
    nodes |= {
        key: nodes[key].merge(node) if key in nodes else node
        for key, node in told.items()
    }
    heads = xr.Dataset(found)
    tree = xr.DataTree.from_dict({"heads": heads, **nodes})
    tree.attrs = {
        **provenance,
        "n_layers": heads.sizes.get("layer", 0),
        "n_heads": heads.sizes.get("head", 0),
        "n_kv_heads": len(set(heads["kv_head"].values)) if "kv_head" in heads else 0,
        "n_texts": n_texts,
        "seed": bootstrap.seed,
        "seeds": json.dumps(seeds),
        "epsilon": sinks.epsilon,
        "intervals": _said(heads),
        "skipped": json.dumps([{"what": a, "why": b} for a, b in skipped.items()]),
        "command": command,
    }
    return tree


def to_table(tree: xr.DataTree) -> pd.DataFrame:
    """An atlas as one row a head.

    Returns:
        Columns layer, head, kv_head, each detector's mean under its name, then each
        interval as `<name>_low` and `<name>_high`. Heads that a layer lacks are left
        out.
    """
    heads = tree["heads"].to_dataset()
    names = [str(name) for name in heads if f"{name}_interval" in heads]
    if not names:
        return pd.DataFrame(columns=[*HEADS, "kv_head"])
    columns = {name: heads[name] for name in names}
    for name in names:
        for bound in BOUNDS:
            interval = heads[f"{name}_interval"]
            columns[f"{name}_{bound}"] = interval.sel(bound=bound, drop=True)
    # A layer without any value is kept: it is the layer that is broken.
    has_value = heads[names].to_dataarray().notnull().any("variable")
    kept = (has_value | ~has_value.any("head")).transpose(*HEADS).values.ravel()
    table = xr.Dataset(columns).to_dataframe(dim_order=list(HEADS)).reset_index()
    table = table.loc[kept, [*HEADS, "kv_head", *columns]]
    return table.reset_index(drop=True)


@dataclass(frozen=True)
class _Job:
    """One input to trace."""

    key: str
    """Name of the store, and of the node."""
    name: str
    """What the input is called."""
    inputs: Any
    """Text or token ids."""
    attrs: dict[str, str | int]
    """Of the trace; says the task."""
    detectors: list[Detector]
    """That read it."""
    needs: Capture
    """What has to be captured besides."""


def _texts(texts: Texts, detectors: list[Detector], needs: Capture) -> list[_Job]:
    """A job for each text."""
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Mapping):
        texts = {f"text {index}": text for index, text in enumerate(texts)}
    if not texts:
        raise InputError("An atlas needs at least one text; got none. Give one.")
    return [
        _Job(f"text_{index}", name, text, {"task": TEXT}, detectors, needs)
        for index, (name, text) in enumerate(texts.items())
    ]


def _repeated_random(
    model: "Model",
    detectors: list[Detector],
    seeds: Sequence[int],
    block: int,
    copies: int,
    max_tokens: int | None,
    skipped: dict[str, str],
) -> list[_Job]:
    """A job for each seed; what the model has no room for goes to `skipped`."""
    jobs = []
    if not seeds:
        skipped |= {detector.name: "no seed was given" for detector in detectors}
    for seed in seeds:
        try:
            task = repeated_random_for(
                model, block=block, copies=copies, seed=seed, max_tokens=max_tokens
            )
        except InputError as error:
            skipped |= {detector.name: str(error) for detector in detectors}
            break
        if task.note:
            skipped["part of the repeated random tokens"] = task.note
        name = f"{REPEATED_RANDOM}_{seed}"
        jobs.append(_Job(name, name, task.ids, task.attrs, detectors, task.capture))
    return jobs


def _common_site(detectors: Iterable[Detector]) -> str | None:
    """The one site that all detectors read; an atlas maps one grid of heads."""
    sites = {detector.site for detector in detectors}
    if len(sites) > 1:
        raise InputError(
            "An atlas maps the heads of one site; the detectors read "
            f"{', '.join(sorted(str(site) for site in sites))}. Give all the same site."
        )
    return next(iter(sites), None)


def _heads(
    detectors: Iterable[Detector], readings: Sequence[Reading], bootstrap: Bootstrap
) -> dict[str, xr.DataArray]:
    """What detectors found over (layer, head)."""
    names = [reading.name for reading in readings]
    found: dict[str, xr.DataArray] = {}
    for detector in detectors:
        of_task = [r for r in readings if r.task == detector.task]
        found |= summarize(detector, of_task, names, bootstrap)
    return found


def _measured(
    experiment: Experiment,
    model: "Model",
    bootstrap: Bootstrap,
    store: str | Path | None,
    progress: Progress | None,
) -> dict[str, xr.DataArray]:
    """What an experiment found, with all that a detector's result has."""
    name = experiment.name
    folder = None if store is None else Path(store) / name
    found = experiment.run(model, folder=folder, bootstrap=bootstrap, progress=progress)
    values = found[name].transpose(*HEADS)
    lines = [
        f"from {type(experiment).__module__} import {type(experiment).__name__}",
        "",
        f"{experiment!r}.run(model)",
    ]
    attrs = {"task": name, "site": "self", "python": "\n".join(lines)}
    bounds, how = found.get(f"{name}_interval"), "none: it is measured once"
    if bounds is None:
        bounds = no_interval(values)
    elif "interval" not in values.attrs:
        how = bootstrap.says(f"{found.sizes[f'{name}_run']} runs")
    attrs = attrs | {"interval": how} | values.attrs
    bounds = bounds.transpose(*HEADS, "bound").assign_attrs(
        units=values.units, long_name=f"{values.long_name}, interval"
    )
    return {
        **{str(key): array for key, array in found.items()},
        name: values.assign_attrs(attrs),
        f"{name}_interval": bounds,
    }


def _said(heads: xr.Dataset) -> str:
    """How intervals were made, each way once, with the detectors that it holds for."""
    ways: dict[str, list[str]] = {}
    for name, array in heads.items():
        if f"{name}_interval" in heads:
            ways.setdefault(array.attrs["interval"], []).append(str(name))
    return "; ".join(f"{', '.join(names)}: {how}" for how, names in ways.items())


def _python(
    detector: Detector,
    jobs: Iterable[_Job],
    block: int,
    copies: int,
    max_tokens: int | None,
) -> str:
    """Lines that give a detector's value on the first input of its task."""
    kind = type(detector)
    options = [
        f"{f.name}={getattr(detector, f.name)!r}"
        for f in fields(detector)
        if getattr(detector, f.name) != f.default
    ]
    call = f"{kind.__name__}({', '.join(options)})"
    imports = ["import interp", f"from {kind.__module__} import {kind.__name__}"]
    limit = "" if max_tokens is None else f", max_tokens={max_tokens}"
    if detector.task == TEXT:
        lines = [f"trace = interp.trace(model, text, capture={call}.needs{limit})"]
    else:
        seed = next(job.attrs["seed"] for job in jobs if detector in job.detectors)
        size = f"block={block}, copies={copies}, seed={seed}{limit}"
        imports.append("from interp.tasks import repeated_random_for")
        lines = [
            f"task = repeated_random_for(model, {size})",
            "trace = interp.trace("
            "model, task.ids, capture=task.capture, attrs=task.attrs)",
        ]
    return "\n".join([*imports, "", *lines, f"{call}(trace)"])
