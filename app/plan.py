"""Which interventions an ablation compares: the heads, and controls, in each mode."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.activations import record
from interp.app.controls import Controls
from interp.heads import HeadSet
from interp.interventions.ablation import AblateHeads, Mode, head_means
from interp.models import Model
from interp.tasks import Item, Texts
from interp.tasks.prompts import opening


@dataclass(frozen=True)
class Plan:
    """What is compared with the untouched model."""

    model: Model
    heads: HeadSet
    controls: Controls
    modes: tuple[Mode, ...]
    seed: int

    def interventions(
        self, texts: Mapping[str, str], items: Mapping[str, list[Item]]
    ) -> dict[str, AblateHeads]:
        """The heads in each mode, and the controls in the same modes."""
        made = {}
        for mode in self.modes:
            reference = self._reference(mode, texts, items)
            names = [mode, *self.controls_of[mode]]
            sets = [self.heads, *self.controls.drawn]
            made |= {
                name: AblateHeads(heads, mode, reference)
                for name, heads in zip(names, sets, strict=True)
            }
        return made

    @property
    def controls_of(self) -> dict[str, list[str]]:
        """Names of the controls by mode."""
        numbers = range(1, len(self.controls.drawn) + 1)
        return {m: [f"{m} control {n}" for n in numbers] for m in self.modes}

    def _reference(
        self, mode: Mode, texts: Mapping[str, str], items: Mapping[str, list[Item]]
    ) -> xr.DataArray | None:
        """What takes the place of heads: means, or another text's output."""
        if mode not in ("mean", "resample"):
            return None
        stretches = [list(each.ids) for each in Texts(texts).items(self.model)]
        if mode == "mean":
            return head_means(self.model, stretches)
        every = [item for each in items.values() for item in each]
        n_tokens = max(len(i.ids) for item in every for i in (item, *item.others))
        tokenizer = self.model.tokenizer
        first = opening(tokenizer) if tokenizer else []
        words = np.concatenate([ids[len(first) :] for ids in stretches])
        rng = np.random.default_rng(self.seed)
        shuffled = [rng.permutation(words) for _ in range(-(-n_tokens // len(words)))]
        ids = [*first, *np.concatenate(shuffled).tolist()][:n_tokens]
        outputs = record(self.model, ids, ("head_output",))
        return outputs["self"].to_dataset()["head_output"]

    def head_maps(self, values: xr.DataArray | None) -> xr.Dataset:
        """Over (layer, head): what was ablated, and what the choice was made by."""
        grid = self.heads.grid
        sets = [self.heads, *self.controls.drawn]
        counts = np.zeros((len(sets), grid.n_layers, grid.n_heads), dtype=int)
        for row, each in enumerate(sets):
            for head in each:
                counts[row, head.layer, head.head] = 1
        dims = "layer", "head"
        maps = {
            "ablated": (dims, counts[0], _ABLATED),
            "drawn": (dims, counts[1:].sum(0), _DRAWN),
        }
        kv_heads = np.arange(grid.n_heads) // grid.group
        coords = {"layer": range(grid.n_layers), "head": range(grid.n_heads)}
        result = xr.Dataset(maps, {**coords, "kv_head": ("head", kv_heads)})
        return result if values is None else result.assign({values.name: values})


_ABLATED = {
    "units": "",
    "long_name": "ablated heads",
    "flag_values": [0, 1],
    "flag_meanings": "kept ablated",
    "description": "The heads that were taken out.",
}
_DRAWN = {
    "units": "controls",
    "long_name": "random controls that hold a head",
    "description": "In how many of the random controls each head was taken out.",
}
