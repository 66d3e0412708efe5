"""Gates that say how much of full attention each KV head needs, found by training them.

Only the gates are trained, one for each KV head; the model stays as it is.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.editing import in_force
from interp.errors import InputError, UnsupportedModelError
from interp.heads import HeadGrid
from interp.models import Model
from interp.probes.experiment import Experiment, Progress
from interp.probes.gate_training import Entry, GateTraining
from interp.probes.reading import Bootstrap
from interp.probes.run_scores import run_scores, summarized
from interp.probes.two_streams import TwoStreams
from interp.probes.vault import Labels, Vault
from interp.tasks.reading import shipped


@dataclass(frozen=True)
class Gates(Experiment):
    """How much of full attention each KV head needs to recall passkeys.

    The defaults suit a small model on a CPU; `Gates.paper()` has the paper's. A text
    repeats the haystack where that is short. Local attention stays within a layer's
    own window or chunk; a layer that sees no more than `recent` has nothing to choose,
    and its gates are 0.
    """

    lengths: tuple[int, ...] = (128, 192, 256)
    """Tokens of the haystacks; in each round all of them, in an order drawn anew."""
    passkeys: int = 2
    """How many are hidden in a text, and asked for at its end."""
    words: int = 8
    """Of each passkey."""
    labels: Labels = "passkey"
    """Tokens whose states are compared: those of the passkeys at the end, or all behind
    the haystack, questions too, as in the released code."""
    first: int = 4
    """Tokens that local attention sees where the text begins."""
    recent: int = 32
    """Tokens that it sees up to the query's own, itself included."""
    steps: int = 30
    """Of the optimizer, one text each."""
    rate: float = 0.1
    """Learning rate; rises over the first fifth of the steps, falls over the last."""
    penalty: float = 0.05
    """Weight of the mean gate in the loss, as in the released code; the paper sums."""
    seeds: tuple[int, ...] = (0,)
    """One training each, with other passkeys; several give an interval."""
    recompute: bool = False
    """Run each block again in the backward pass: less memory, more time."""
    haystack: str | None = field(default=None, kw_only=True)
    """Any prose; None for the shipped text."""

    name = "gates"
    unit = "fraction"
    long_name = "gate of full attention"
    description = (
        "Share of full attention that the KV head keeps when passkeys have to be "
        "recalled; at 0 the first and the recent tokens are enough."
    )
    source = (
        "DuoAttention (arXiv:2410.10819), per KV head; shorter and fewer texts unless "
        "Gates.paper()"
    )

    def __post_init__(self) -> None:
        """Refuse what trains nothing."""
        least = min((*self.lengths, self.recent, self.steps), default=0)
        numbers = self.rate > 0 and self.penalty >= 0 and self.first >= 0
        if least < 1 or not numbers or not self.seeds or not self.lengths:
            raise InputError(
                "Gates take lengths, recent, steps and rate above 0, a penalty and "
                f"first from 0 on, and a seed; got {self}. Start from Gates()."
            )

    @classmethod
    def paper(cls) -> "Gates":
        """As published: 2,000 texts of up to 32,000 tokens, made for models of 7B."""
        lengths = np.linspace(1000, 32_000, 50).astype(int)
        return cls(
            lengths=tuple(lengths.tolist()),
            passkeys=10,
            words=32,
            first=128,
            recent=256,
            steps=2000,
            rate=0.02,
            seeds=(42,),
            recompute=True,
        )

    def run(
        self,
        model: Model,
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """Trains the gates.

        Args:
            model: A decoder-only language model with a fast tokenizer.
            folder: Where states are kept; a run goes on behind the last that is there,
                and ends as if it had not been interrupted.
            bootstrap: How intervals are made, with several seeds.
            progress: Told of every step.

        Returns:
            `gates` (layer, head); `gates_interval` and `gates_runs` with several
            seeds; `gates_kv` (layer, kv_group); and over (gates_run, gates_step):
            `gates_loss`, the squared distance of the streams, `gates_penalty`,
            `gates_tokens` and the gates after the step, `gates_path`.

        Raises:
            InputError: The texts do not fit the context or hide nothing, there is no
                fast tokenizer, or an intervention is in force.
            UnsupportedModelError: The model is no decoder, its attention cannot be
                replaced, or the loss is no number.
        """
        sites = model.anatomy.at("self")
        if model.module.config.is_encoder_decoder:
            raise UnsupportedModelError(
                f"Gates are trained on what a text's own past holds; {model.name} also "
                "has an encoder. Choose a decoder-only model, such as Llama or Qwen."
            )
        if in_force(model.module):
            raise InputError(
                "Gates are trained on the model as it is; an intervention is in force. "
                "Train them outside its block."
            )
        streams = TwoStreams(model, self.first, self.recent, self.recompute)
        if not any(map(streams.is_gated, sites)):
            raise InputError(
                f"Gates choose between all of a text and its recent {self.recent} "
                f"tokens; no layer of {model.name} sees further back. Take less recent."
            )
        text = shipped() if self.haystack is None else self.haystack
        vault = Vault(text, self.passkeys, self.words, self.labels)
        knobs = self.lengths, self.steps, self.rate, self.penalty
        training = GateTraining(streams, vault, *knobs)
        total, logs = self.steps * len(self.seeds), []
        for n_done, seed in enumerate(self.seeds):

            def tell(step: int, before: int = n_done * self.steps) -> None:
                if progress is not None:
                    progress(self.name, before + step, total)

            logs.append(training.log(seed, folder, tell))
        return self._result(model, logs, bootstrap)

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """As every experiment; of a haystack its digest."""
        text = "shipped"
        if self.haystack is not None:
            text = f"sha256:{sha256(self.haystack.encode()).hexdigest()}"
        return super().labelled(values).assign_attrs(haystack=text)

    def _result(
        self, model: Model, logs: list[list[Entry]], bootstrap: Bootstrap | None
    ) -> xr.Dataset:
        """What each seed gave, with names and units."""
        ends = np.array([log[-1]["path"] for log in logs])
        scores = ends.repeat(HeadGrid.of(model.anatomy).group, axis=2).tolist()
        names = [f"seed {seed}" for seed in self.seeds]
        runs = run_scores(model, self.name, scores, names, {"seed": list(self.seeds)})
        found = summarized(self, runs, f"{len(logs)} seeds", bootstrap, {})
        if len(logs) == 1:
            found = found.drop_vars(["gates_interval", "bound"])
            found["gates"].attrs["interval"] = "none: one training"
        step, group = ("gates_run", "gates_step"), ("layer", "kv_group")
        curves = {
            "loss": (step, "activation^2", "squared distance of the streams"),
            "penalty": (step, "activation^2", "penalty on the mean gate"),
            "tokens": (step, "tokens", "length of the text"),
            "path": ((*step, *group), self.unit, f"{self.long_name}, after the step"),
        }
        arrays: dict[str, Any] = {
            f"{self.name}_{name}": (
                dims,
                np.array([[entry[name] for entry in log] for log in logs]),
                {"units": units, "long_name": about},
            )
            for name, (dims, units, about) in curves.items()
        }
        about = {"units": self.unit, "long_name": f"{self.long_name}, of each KV head"}
        arrays["gates_kv"] = (group, ends.mean(0), about)
        steps = np.arange(1, self.steps + 1)
        return found.assign(arrays).assign_coords(gates_step=steps)
