"""What an intervention is: a value that edits a model for the length of a block."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from interp.adapters.nnsight import is_wrapper
from interp.adapters.transformer_lens import is_bridge
from interp.anatomy import Anatomy, Site
from interp.editing import AttentionEdit, editing
from interp.errors import InputError
from interp.heads import HeadGrid, HeadSet
from interp.kernels.edits import Edit
from interp.kernels.rules import AttentionCall
from interp.models import Model, load
from interp.tap import tap


class Intervention(AttentionEdit):
    """A change of a running model: `with intervention(model):` edits, then restores.

    A subclass is a frozen dataclass with its paper's knobs as fields. It overrides
    what it changes: `inputs`, `weights` and `output` of attention calls, or `hook` for
    the rest of a block. `a + b` does both, `a` first. Blocks may be nested, and hold
    plain forwards, `interp.trace`, generation and `interp.evaluation.evaluate`.
    """

    @property
    def only_outputs(self) -> bool:
        """Whether it changes nothing but what heads give to the output projection."""
        return False

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Edits the model for the length of a `with` block.

        Args:
            model: From `interp.load`, a transformers module, or one that nnsight or
                TransformerLens has wrapped, as `load` takes them.

        Raises:
            InputError: The intervention names what the model does not have.
            UnsupportedModelError: The model's attention cannot be reached.
        """
        if is_bridge(model) or is_wrapper(model):
            model = load(model)
        module = model.module if isinstance(model, Model) else model
        anatomy = model.anatomy if isinstance(model, Model) else Anatomy.of(module)
        self.check(anatomy)
        with ExitStack() as stack:
            stack.enter_context(editing(module, self))
            stack.enter_context(tap(module, lambda visit: None, anatomy=anatomy))
            for entered in self.hooks(module, anatomy):
                stack.enter_context(entered)
            yield

    def check(self, anatomy: Anatomy) -> None:
        """Refuses a model that has not what the intervention names.

        Raises:
            InputError: With what it has instead.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, HeadSet):
                check_heads(value, anatomy)

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """What else is entered for the length of the block, in order."""
        return ()

    def first_block(self, anatomy: Anatomy) -> int:
        """The first decoder block that is changed: those before run as they did."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        values = [getattr(self, field.name) for field in fields]
        sets = [value for value in values if isinstance(value, HeadSet)]
        if any(heads.grid.site != "self" for heads in sets):
            return 0
        return min((head.layer for heads in sets for head in heads), default=0)

    def __add__(self, other: "Intervention") -> "Intervention":
        """Both: this one first, then the other on what it left."""
        if not isinstance(other, Intervention):
            return NotImplemented
        return Composed((*parts_of(self), *parts_of(other)))

    def __str__(self) -> str:
        """Name and knobs, arrays by a digest of their content."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        knobs = {f.name: getattr(self, f.name) for f in fields if f.repr}
        inner = ", ".join(f"{name}={told(value)}" for name, value in knobs.items())
        return f"{type(self).__name__}({inner})"


@dataclass(frozen=True)
class Composed(Intervention):
    """Several interventions, one after the other; made by `+`."""

    parts: tuple[Intervention, ...]

    def check(self, anatomy: Anatomy) -> None:
        """Each part checks."""
        for part in self.parts:
            part.check(anatomy)

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """Those of each part."""
        return [h for part in self.parts for h in part.hooks(module, anatomy)]

    @property
    def uses_keys(self) -> bool:
        """If any part does."""
        return any(part.uses_keys for part in self.parts)

    def first_block(self, anatomy: Anatomy) -> int:
        """The first of all parts."""
        return min(part.first_block(anatomy) for part in self.parts)

    def inputs(self, site: Site, call: AttentionCall) -> AttentionCall:
        """Each part changes what the one before left."""
        for part in self.parts:
            call = part.inputs(site, call)
        return call

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """Those of each part, in order."""
        return [edit for part in self.parts for edit in part.weights(site, call)]

    def output(self, site: Site, call: AttentionCall, output: Tensor) -> Tensor:
        """Each part changes what the one before left."""
        for part in self.parts:
            output = part.output(site, call, output)
        return output

    def __str__(self) -> str:
        """The parts with a plus between."""
        return " + ".join(map(str, self.parts))


def parts_of(intervention: Intervention) -> tuple[Intervention, ...]:
    """What was composed by `+`, or the intervention alone."""
    is_composed = isinstance(intervention, Composed)
    return intervention.parts if is_composed else (intervention,)


def check_heads(heads: HeadSet, anatomy: Anatomy) -> None:
    """Refuses heads of another model, and an empty set.

    Raises:
        InputError: With both grids, or that there is no head.
    """
    if not heads:
        raise InputError(
            "An intervention on heads was asked for; the set is empty. Name at least "
            "one head, such as L1.H2."
        )
    grid = HeadGrid.of(anatomy, heads.grid.site)
    if grid != heads.grid:
        raise InputError(
            f"Heads {heads} are of {heads.grid}; this {anatomy.model_type} model has "
            f"{grid}. Take the heads from this model."
        )


def heads_at(heads: HeadSet, site: Site) -> list[int]:
    """The heads of a set that attend in one module, ascending."""
    if heads.grid.site != site.name:
        return []
    return list(heads.by_layer().get(site.layer, ()))


def told(value: Any) -> str:
    """A knob in a few words: arrays by their shape and a digest of their content."""
    if isinstance(value, xr.DataArray):
        value = value.values
    if isinstance(value, Tensor):
        value = value.detach().cpu().to(torch.float64).numpy()
    if isinstance(value, np.ndarray):
        digest = sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"<{'x'.join(map(str, value.shape))} {digest[:12]}>"
    if isinstance(value, HeadSet):
        return str(value)
    return repr(value)
