"""Ablations and generations as jobs: what runs, apart from how it is shown."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from interp.app.ablate import STORE, Request, make
from interp.app.explorer.models import Library
from interp.app.explorer.readings import Reading
from interp.app.heads import Named
from interp.app.progress import Progress
from interp.errors import InputError
from interp.generation import generate
from interp.heads import HeadSet
from interp.inputs import prepare
from interp.interventions.ablation import AblateHeads, Mode
from interp.models import Model
from interp.tasks.reading import SHIPPED, shipped

STRETCHES = 8
"""Items that a text is cut into, so that an effect has an interval."""

FEWEST = 16
"""Tokens of such an item, at least."""


@dataclass(frozen=True)
class Ablation:
    """What was found, and the page that tells all of it.

    Attributes:
        tree: As `interp.app.results.ablation_tree` builds it.
        page: An HTML page, as `interp ablate` writes it.
        command: The same on the command line.
    """

    tree: xr.DataTree
    page: str
    command: str

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and of the page."""
        arrays = sum(node.to_dataset().nbytes for node in self.tree.subtree)
        return arrays + len(self.page)


@dataclass(frozen=True)
class Asked:
    """What is to be ablated and measured.

    Attributes:
        heads: As `L1.H2,L3.H4`.
        task: A name of `interp.tasks`.
        modes: How heads are taken out.
        controls: Random controls, or None for 20, or as many as there are.
        n_tokens: Of the text that is read, at most.
        seed: Of controls and intervals.
    """

    heads: str
    task: str = "nll"
    modes: tuple[Mode, ...] = ("zero",)
    controls: int | None = None
    n_tokens: int = 384
    seed: int = 0

    @property
    def spec(self) -> str | dict[str, Any]:
        """The task, a text in several stretches."""
        if self.task != "nll":
            return self.task
        return {"task": "nll", "max_tokens": max(self.n_tokens // STRETCHES, FEWEST)}

    @property
    def command(self) -> str:
        """The same on the command line, but for the text."""
        modes = " ".join(f"--mode {mode}" for mode in self.modes)
        task = self.spec if isinstance(self.spec, str) else _toml(self.spec)
        controls = "" if self.controls is None else f" --controls {self.controls}"
        return (
            f"interp ablate MODEL --heads {self.heads} --task '{task}' {modes}"
            f"{controls} --max-tokens {self.n_tokens} --seed {self.seed}"
        )


def run(
    library: Library, reading: Reading, asked: Asked, folder: Path, tell: Progress
) -> Ablation:
    """Ablate heads of the reading's model; a run that was cancelled is gone on with.

    Args:
        library: Has the model.
        reading: Whose model and text; of a store, the shipped text is read.
        asked: What is ablated.
        folder: Where runs lie.
        tell: Of progress.

    Raises:
        InputError: Heads or task cannot be used.
    """
    name, text = text_of(reading)
    decided = f"{reading.key} {asked} {hashlib.sha256(text.encode()).hexdigest()}"
    out = folder / hashlib.sha256(decided.encode()).hexdigest()[:24]
    with library.use(require_model(reading), tell) as model:
        require_same(model, reading)
        request = Request(
            model=model,
            heads=Named(tuple(asked.heads.split(",")), "the explorer"),
            out=out,
            texts={name: text},
            tasks=(asked.spec,),
            modes=asked.modes,
            n_controls=asked.controls,
            max_tokens=asked.n_tokens,
            seed=asked.seed,
            command=asked.command,
        )
        page, _ = make(request, tell)
    tree = xr.open_datatree(out / STORE, engine="zarr", consolidated=False).load()
    return Ablation(tree, page.read_text("utf-8"), asked.command)


def continuations(
    library: Library,
    reading: Reading,
    heads: str,
    mode: Mode,
    prompt: str,
    count: int,
    tell: Progress,
) -> dict[str, str]:
    """What the model says after a prompt: untouched, and without some heads.

    Raises:
        InputError: No prompt, or heads that the model lacks.
    """
    with library.use(require_model(reading), tell) as model:
        require_same(model, reading)
        cut = AblateHeads(HeadSet.parse(heads, model.anatomy), mode)
        said = {"untouched": _continued(model, prompt, count, tell, "untouched")}
        with cut(model):
            said["without the heads"] = _continued(
                model, prompt, count, tell, "without the heads"
            )
    return said


def text_of(reading: Reading) -> tuple[str, str]:
    """Name and content of the text that experiments read."""
    if reading.text is None:
        return SHIPPED, shipped()
    return "text", reading.text


def require_model(reading: Reading) -> str:
    """How the reading's model is loaded.

    Raises:
        InputError: Nobody knows.
    """
    if reading.model is None:
        raise InputError(
            f"{reading.title} does not say its model. Choose a model as source."
        )
    return reading.model


def require_same(model: Model, reading: Reading) -> None:
    """Refuse another model of the same name.

    Raises:
        InputError: Its weights differ from those that the store was made with.
    """
    known = reading.atlas.attrs.get("model_hash") or model.content_hash
    if known != model.content_hash:
        raise InputError(
            f"The model {model.name} that is here is not the one that the store was "
            f"made with (hash {model.content_hash[:12]}, there {known[:12]}). Start "
            "the explorer with --model."
        )


def _continued(model: Model, prompt: str, count: int, tell: Progress, step: str) -> str:
    ids = generate(
        model,
        prepare(model, prompt),
        count,
        tell=lambda done: tell(step, len(done), count),
    )
    if model.tokenizer is None:
        raise InputError(f"{model.name} came without a tokenizer. Choose another.")
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


def _toml(spec: dict[str, Any]) -> str:
    inside = ", ".join(
        f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in spec.items()
    )
    return f"{{{inside}}}"
