"""`interp rhythm`: the rhythm of texts, or of what a model writes, as a folder."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.app.folder import (
    PAGE,
    digest,
    identity,
    known_run,
    require_same,
    save,
    versions,
    write_run,
    write_whole,
    writing,
)
from interp.app.progress import Progress
from interp.errors import InputError, StorageError
from interp.evaluation import check, require_decoder
from interp.models import Model, load
from interp.probes.chain_trace import trace_chain
from interp.probes.coupling import Coupling
from interp.probes.credit_assignment import credit
from interp.probes.preplan import together
from interp.probes.reach import Reach
from interp.probes.reading import Bootstrap
from interp.probes.rhythm import Rhythm
from interp.tasks import Chains, Item
from interp.tasks.prompts import encode
from interp.uncertainty import BOUNDS
from interp.viz.rhythm import write

STORE = "rhythm.zarr"
TOKENS = "tokens.csv"
COUPLING = "coupling.csv"
CHAINS = "chains"
KINDS = ("local", "global", "coupled")
"""Of credit."""
COLUMNS = (
    *("waad", "delta", "preplan", "waad_peak", "entropy", "nll"),
    *("fai", "anchor", "fai_peak", "receiver_fai", "receiver_peak"),
    *(f"credit_{kind}" for kind in KINDS),
)
"""What the table has of tokens."""


@dataclass(frozen=True)
class Request:
    """What was asked for, before anything was measured."""

    model: str | Model
    out: Path
    texts: Mapping[str, str]
    """Read as they stand; all tokens but the first count as the response."""
    asked: Mapping[str, Chains]
    """Chains of thought, by what is said of where they come from."""
    reach: Reach = field(default_factory=Reach)
    max_tokens: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    command: str = ""

    @property
    def inputs(self) -> dict[str, str]:
        """Texts and chains, by name."""
        asked = {name: json.dumps(task.attrs) for name, task in self.asked.items()}
        return {**self.texts, **asked}

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the results beside model and texts."""
        layers = self.reach.layers
        return {
            "layers": list(layers) if isinstance(layers, tuple) else layers,
            "exclude_sink": self.reach.exclude_sink,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }

    @property
    def options(self) -> Rhythm:
        """How a response is read."""
        return Rhythm(self.reach, coupling=Coupling(seed=self.seed))


def make(request: Request, progress: Progress) -> tuple[Path, bool]:
    """Write, read and measure, or finish what was interrupted.

    Returns:
        The page, and whether it was there already.

    Raises:
        InputError: A text, prompt or layer cannot be used, or the folder holds
            something else or another run's results.
        UnsupportedModelError: No decoder-only language model, or its attention cannot
            be reached.
        StorageError: The folder cannot be written.
    """
    out, clock = request.out, [time.perf_counter()]
    known = known_run(out)
    model = load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        progress=lambda step: progress(step, 0, 0),
    )
    clock.append(time.perf_counter())
    decided = identity(model, request.inputs, request.parameters)
    if known is not None:
        require_same(out, known, decided, "rhythm")
        made = all((out / name).exists() for name in (STORE, TOKENS, COUPLING, PAGE))
        if known.get("finished") and made:
            return out / PAGE, True
    require_decoder(model)
    model.anatomy.require_attention()
    request.reach.among(len(model.anatomy.at("self")))
    plain = [_plain(model, *each, request.max_tokens) for each in request.texts.items()]
    with writing(out):
        write_run(out, {**decided, "finished": False})
        items = [*plain, *_written(model, request, progress)]
        clock.append(time.perf_counter())
        chains = [_chain(model, each, request, progress) for each in items]
        clock.append(time.perf_counter())
        progress("writing", 0, 0)
        found = together(chains, Bootstrap(seed=request.seed))
        found = _credited(found).assign_attrs(_attrs(model, request, decided))
        found["prompt_text"] = "chain", _prompts(model, items)
        save(xr.DataTree(found), out / STORE)
        write_whole(out / TOKENS, to_table(found).to_csv(index=False))
        write_whole(out / COUPLING, links(found).to_csv(index=False))
        write(found, out / PAGE)
        clock.append(time.perf_counter())
        steps = ("load_s", "generate_s", "trace_s", "write_s")
        timings = {s: round(clock[n + 1] - clock[n], 2) for n, s in enumerate(steps)}
        finished = {
            **decided,
            "finished": True,
            "command": request.command,
            "options": json.loads(found.attrs["options"]),
            "versions": versions(),
            "timings": timings,
            "skipped": json.loads(found.attrs["skipped"]),
        }
        write_run(out, finished)
    return out / PAGE, False


def to_table(found: xr.Dataset) -> pd.DataFrame:
    """A row for each token of each response.

    Returns:
        `chain`, `token` (place in the response), `position` (in the whole text),
        `text`, then `COLUMNS`; what depends on a horizon once for each, as in
        `fai 10-100`.
    """
    parts = []
    for name in found["chain"].values:
        own = found.sel(chain=name).isel(
            token=slice(int(found["n_tokens"].sel(chain=name)))
        )
        place = own["token"].values
        columns: dict[str, Any] = {
            "chain": name,
            "token": place,
            "position": place + int(own["prompt_tokens"]),
            "text": own["token_text"].values,
        }
        for each in COLUMNS:
            if "horizon" not in own[each].dims:
                columns[each] = own[each].values
                continue
            for horizon in own["horizon"].values:
                columns[f"{each} {horizon}"] = own[each].sel(horizon=horizon).values
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def links(found: xr.Dataset) -> pd.DataFrame:
    """A row for each coupling statistic at each horizon: of all chains, and of each.

    Returns:
        `chain` is "all" where chains are taken together; only there `low` and `high`
        bound the lift.
    """
    names = ("observed", "expected", "lift", "p")
    whole = found[[f"mean_{name}" for name in names]]
    whole = whole.rename({f"mean_{name}": name for name in names})
    bounds = {b: found["lift_interval"].sel(bound=b, drop=True) for b in BOUNDS}
    whole = whole.assign(bounds).expand_dims(chain=np.array(["all"], dtype=object))
    every = xr.concat([whole, found[list(names)]], "chain", join="outer")
    rows = every.to_dataframe(dim_order=["chain", "link", "horizon"]).reset_index()
    columns = ["chain", "link", "horizon", "observed", "expected", "lift", *BOUNDS, "p"]
    return rows.loc[:, columns]


def _plain(model: Model, name: str, text: str, max_tokens: int | None) -> Item:
    """A text as it stands: nothing predicts its first token, all others count."""
    ids = encode(model, text)[0][:max_tokens]
    if len(ids) < 2:
        raise InputError(
            f"{name}: a rhythm is that of several tokens; the text has {len(ids)}. "
            "Give a longer one."
        )
    item = Item(name, tuple(ids), (1, len(ids)))
    try:
        check(model, item)
    except InputError as error:
        raise InputError(
            f"{name} has {len(ids):,} tokens; {model.name} was made for "
            f"{model.max_tokens:,}. Give --max-tokens {model.max_tokens}, or another "
            "model."
        ) from error
    return item


def _written(model: Model, request: Request, progress: Progress) -> list[Item]:
    """The chains that are given, and those that the model writes now."""
    found = []
    for name, task in request.asked.items():
        items = task.items(
            model,
            folder=request.out / CHAINS,
            progress=lambda each, *done, name=name: progress(
                f"{name} {each}, writing", *done
            ),
        )
        found += [replace(item, name=f"{name} {item.name}") for item in items]
    return found


def _chain(
    model: Model, item: Item, request: Request, progress: Progress
) -> xr.Dataset:
    """What is read off one response, from its store if it was finished before."""
    number = json.dumps([item.name, item.ids])
    path = request.out / CHAINS / f"{digest(number)[:16]}.zarr"
    if path.exists():
        try:
            with xr.open_dataset(path, engine="zarr", consolidated=False) as kept:
                return kept.load()
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{path} cannot be read: {error}. Delete it; the text is read again."
            ) from error
    n_layers = len(model.anatomy.at("self"))
    traced = trace_chain(
        model, item, request.options, progress=partial(progress, item.name)
    )
    found = request.options.read(traced, n_layers)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(xr.DataTree(found), path)
    return found


def _credited(found: xr.Dataset) -> xr.Dataset:
    """With the credit of every token, of each kind."""
    return found.assign({f"credit_{kind}": credit(found, kind) for kind in KINDS})


def _prompts(model: Model, items: Sequence[Item]) -> np.ndarray:
    """What stands before each response."""
    tokenizer: Any = model.tokenizer
    prompts = [tokenizer.decode(item.ids[: item.scored[0]]) for item in items]
    return np.array(prompts, dtype=object)


def _attrs(
    model: Model, request: Request, decided: Mapping[str, Any]
) -> dict[str, str | int]:
    """For the record."""
    return {
        "model": model.name,
        "model_hash": model.content_hash,
        "model_type": model.anatomy.model_type,
        "device": decided["device"],
        "dtype": decided["parameters"]["dtype"],
        "seed": request.seed,
        "versions": json.dumps(versions()),
        "command": request.command,
    }
