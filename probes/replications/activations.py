"""Claims on massive activations: what they look like, and what they are for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.capture import Capture
from interp.errors import InputError
from interp.interventions.activations import SetActivations, mean_activations
from interp.interventions.sweeping import NONE, sweep
from interp.probes.activations import massive_cells, runs
from interp.probes.constancy import input_independence
from interp.probes.experiment import Progress
from interp.probes.replications.claim import Claim, Evidence, told
from interp.probes.replications.sinks import windows
from interp.tasks.items import Item
from interp.tasks.reading import shipped
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model

RESIDUAL = Capture((), edges=None, residual=True)


@dataclass(frozen=True)
class MassiveActivationsFixed(Claim):
    """Sun et al. 2024: few cells, at fixed channels, that do not depend on the text."""

    n_texts: int = 8
    """Stretches of the shipped text."""
    n_tokens: int = 128
    """Of each."""

    name = "massive_activations_fixed"
    statement = (
        "Massive activations lie in very few fixed channels, appear within one block, "
        "stay constant through the layers, and hardly depend on the input."
    )
    published = (
        "Llama-2-7B: channels 1415 and 2533 of 4,096, from layer 2 to 30 of 32, about "
        "2,000 to 2,600 beside a median of 0.2"
    )
    source = "Sun et al. 2024 (arXiv:2402.17762) section 2"
    method = (
        "Cells above 100 and 1,000 times the layer's median, in stretches of the "
        "shipped text without a token in front. Constant: mean deviation from the "
        "mean, over the mean. Inputs are paragraphs; of these only the first token "
        "counts, since the largest cell is the first token's."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Channels, rise, course in depth, and spread over inputs."""
        channels, largest_ones, rise, course = [], [], [], []
        rows = windows(model, self.n_tokens, self.n_texts)
        for done, row in enumerate(rows):
            told(progress, self.name, done, len(rows))
            traced = trace(model, row, capture=RESIDUAL)
            found = runs(traced)
            if found.empty:
                raise InputError(
                    f"No activation of {model.name} is massive by the paper's rule, in "
                    f"a text of {self.n_tokens} tokens. Choose another model."
                )
            largest = found.iloc[0]
            rise.append(largest["share"])
            cells = massive_cells(traced)
            channels.append(set(cells["channel"]))
            is_it = cells[["token", "channel"]] == largest[["token", "channel"]]
            inner = np.asarray(cells.loc[is_it.all(axis=1), "magnitude"])[:-1]
            course.append(np.mean(abs(inner / inner.mean() - 1)))
            layer = (largest["first_layer"] + largest["last_layer"]) // 2
            largest_ones.append((layer, largest["token"], largest["channel"]))
        layer, token, channel = cell = max(
            dict.fromkeys(largest_ones), key=largest_ones.count
        )
        texts = [text for text in shipped().split("\n\n") if len(text) > 200]
        spread = input_independence(model, texts, [cell], max_tokens=token + 1)
        values = spread["value"].isel(cell=0, bos=0).values
        return [
            Evidence.mean(
                "channels with a massive activation",
                "channels of a text",
                [len(each) for each in channels],
                "texts",
                most=4.0,
            ),
            Evidence.mean(
                f"texts whose largest is in channel {channel}",
                "fraction",
                [float(each[2] == channel) for each in largest_ones],
                "texts",
                least=0.9,
            ),
            Evidence.mean(
                "part of the peak that one half of one block writes",
                "fraction",
                rise,
                "texts",
                least=0.8,
            ),
            Evidence.mean(
                "deviation through the layers, the last left out",
                "fraction",
                course,
                "texts",
                most=0.1,
            ),
            Evidence.mean(
                f"deviation over inputs, layer {layer}",
                "fraction",
                abs(values / values.mean() - 1),
                "paragraphs",
                most=0.1,
            ),
        ]


@dataclass(frozen=True)
class MassiveActivationsBias(Claim):
    """Sun et al. 2024: set to zero all is lost, set to their mean nothing is."""

    n_texts: int = 8
    """Stretches of the shipped text that are scored; as many others give the mean."""
    n_tokens: int = 128
    """Of each."""

    name = "massive_activations_bias"
    statement = (
        "Massive activations work as a bias: set to zero the model breaks, set to "
        "their mean it does not, and other cells of the channel do not matter."
    )
    published = (
        "Llama-2-7B on WikiText: perplexity 5.47 becomes infinite with zero, 5.47 with "
        "the mean; zero-shot accuracy 68.95 becomes 36.75 and 68.94 %"
    )
    source = "Sun et al. 2024 (arXiv:2402.17762) section 3"
    method = (
        "The largest cell, in the layer where it appears; perplexity of each stretch "
        "of the shipped text, over that of the untouched model. The mean is that of "
        "other stretches. The other cell is the same channel of the sixth token."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Ratios of perplexity."""
        rows = windows(model, self.n_tokens, 2 * self.n_texts)
        scored, others = rows[: self.n_texts], rows[self.n_texts :]
        found = runs(trace(model, scored[0], capture=RESIDUAL))
        if found.empty:
            raise InputError(
                f"No activation of {model.name} is massive by the paper's rule, in a "
                f"text of {self.n_tokens} tokens. Choose another model."
            )
        largest = found.iloc[0]
        place = int(largest["first_layer"]), int(largest["token"])
        channel = int(largest["channel"])
        cell, control = ((*place, channel),), ((place[0], 5, channel),)
        mean = mean_activations(model, others, cell)
        changes = {
            "zero": SetActivations(cell),
            "mean": SetActivations(cell, mean),
            "other": SetActivations(control),
        }
        items = [
            Item(f"text {n}", tuple(row), (1, len(row))) for n, row in enumerate(scored)
        ]
        out = None if folder is None else folder / f"{self.name}.jsonl"
        tell = progress and (lambda done, total: progress(self.name, done, total))
        nll = sweep(model, changes, items, kl=False, out=out, progress=tell)["nll"]
        ratio = xr.ufuncs.exp(nll - nll.sel(intervention=NONE))
        near = {"least": 0.98, "most": 1.02}
        claimed = {
            "zero": ("perplexity ratio, the cell set to zero", {"least": 10.0}),
            "mean": ("the same, set to its mean", near),
            "other": ("the same, another token's cell set to zero", near),
        }
        return [
            Evidence.mean(
                what, "ratio", ratio.sel(intervention=name), "texts", **bounds
            )
            for name, (what, bounds) in claimed.items()
        ]
