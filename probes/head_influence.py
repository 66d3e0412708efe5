"""How much a text's loss hangs on each head alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.evaluation import require_decoder
from interp.heads import HeadGrid, HeadId, HeadSet
from interp.interventions.losses import Stretches
from interp.probes.experiment import Experiment, Progress
from interp.probes.influence import block_sums
from interp.probes.memo import remembered
from interp.probes.reading import Bootstrap
from interp.probes.run_scores import run_scores, summarized
from interp.tasks.reading import ORCHARD, shipped
from interp.tasks.texts import stretches

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class HeadInfluence(Experiment):
    """Relative rise of a text's loss when one head looks everywhere alike.

    The model runs once for each head and stretch of text, from the block on that the
    head is in: minutes on a CPU.
    """

    texts: Sequence[str] = ()
    """What is read; nothing stands for a shipped text that no task reads unasked."""
    max_tokens: int = 64
    """Tokens of a stretch at most."""
    stretches: int = 4
    """Of each text, from its beginning; each is a run."""

    name = "influence"
    unit = "fraction"
    long_name = "influence on the loss"
    description = (
        "Relative rise of a text's loss when the head alone weighs all the keys that a "
        "query sees alike; below 0 where the text is then easier to predict."
    )
    source = (
        "AttentionInfluence (arXiv:2505.07293), equation 5, which masks 5 % of the "
        "heads together to rank texts, as `interp influence` does; here each head alone"
    )

    def __post_init__(self) -> None:
        """Refuse stretches in which nothing is predicted."""
        if self.max_tokens < 4 or self.stretches < 1:
            raise InputError(
                "HeadInfluence reads stretches of 4 tokens or more, one at least; got "
                f"max_tokens={self.max_tokens}, stretches={self.stretches}. Usual are "
                "64 and 4."
            )

    def run(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """The mean over stretches, with every stretch.

        Args:
            model: A decoder-only language model with a tokenizer.
            folder: Where the losses of each layer are kept.
            bootstrap: How intervals are made.
            progress: Told of every layer.

        Returns:
            As every experiment; along `influence_run` the coordinate `influence_nll`,
            the loss without a mask, in nats per token.

        Raises:
            InputError: The model has no tokenizer, or a text is too short.
            UnsupportedModelError: It is no decoder-only language model.
        """
        require_decoder(model)
        texts = self.texts or (shipped(ORCHARD),)
        cut = {
            f"{n}-{place}": (stretch,)
            for n, text in enumerate(texts)
            for place, stretch in enumerate(
                stretches(model, str(n), text, self.max_tokens)[: self.stretches]
            )
        }
        grid = HeadGrid.of(model.anatomy)
        rises, base = [], np.zeros(0)
        for layer in range(grid.n_layers):
            if progress is not None:
                progress(self.name, layer, grid.n_layers)
            work = partial(_of_layer, model, layer, grid, tuple(cut.values()))
            identity = [self.name, layer, list(cut.values())]
            losses = np.array(remembered(folder, model, identity, work)["nats"])
            base = losses[:, 0]
            rises.append((losses[:, 1:] - losses[:, :1]) / losses[:, :1])
        if progress is not None:
            progress(self.name, grid.n_layers, grid.n_layers)
        n_scored = [len(text) - 1 for (text,) in cut.values()]
        labels = {"nll": base / n_scored}
        scores = np.stack(rises, axis=1).tolist()
        runs = run_scores(model, self.name, scores, cut, labels)
        what = f"{len(cut)} stretches of text"
        return summarized(self, runs, what, bootstrap, {})

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every experiment; of the texts, how many there are."""
        return super().labelled(values).assign_attrs(texts=len(self.texts or ("",)))


def _of_layer(
    model: "Model", layer: int, grid: HeadGrid, texts: Sequence[Stretches]
) -> dict[str, list[list[float]]]:
    """Nats of each text, untouched and with each head of a layer masked."""
    heads = [HeadId(layer, head) for head in range(grid.n_heads)]
    masked = {str(head): HeadSet((head,), grid) for head in heads}
    sums = block_sums(model, set(texts), masked)
    return {"nats": [sums[text].sum(1).tolist() for text in texts]}
