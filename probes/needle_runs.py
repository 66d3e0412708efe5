"""Runs in which a model has to find a needle again, and what its heads did in them."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.decoding import trace_decoding
from interp.errors import InputError
from interp.evaluation import check, coordinates, require_decoder
from interp.kernels.definitions import Statistic
from interp.metrics import rouge_recall
from interp.probes.detector import HEADS
from interp.probes.experiment import Experiment, Progress
from interp.probes.memo import remembered
from interp.probes.reading import Bootstrap
from interp.probes.run_scores import run_scores, strings, summarized
from interp.tasks import Item, Needle
from interp.tasks.reading import ORCHARD, shipped

if TYPE_CHECKING:
    from interp.models import Model

LENGTHS, SHORTEST = (200, 400), 100
DEPTHS = (0.2, 0.8)
ABOVE = 0.1
"""Score from which on a head is called a retrieval head."""
BANDS = {"0": 0.0, "(0, 0.1]": 0.1, "(0.1, 0.5]": 0.5, "above 0.5": np.inf}
"""The paper's bands of scores, each up to a limit."""


def fitting_grid(model: "Model", max_new_tokens: int = 50) -> Needle:
    """The runs of default: 2 lengths, 2 depths and 3 needles, 12 in all.

    The haystack is no text that a task reads unasked. Lengths are those of `LENGTHS`,
    or shorter where the context is.

    Raises:
        InputError: The context is too short for any haystack.
    """
    limit = model.max_tokens
    room = LENGTHS[-1] if limit is None else min(limit - max_new_tokens, LENGTHS[-1])
    if room < SHORTEST:
        raise InputError(
            f"Needles are hidden in at least {SHORTEST} tokens, and {max_new_tokens} "
            f"more are generated; {model.name} was made for {limit}. Choose a model "
            "with a longer context."
        )
    lengths = tuple(length * room // LENGTHS[-1] for length in LENGTHS)
    return Needle(lengths, DEPTHS, haystack=shipped(ORCHARD))


def paper_grid(longest: int = 50_000, haystack: str | None = None) -> Needle:
    """The paper's grid: 20 lengths, 10 depths and 3 needles, 600 runs.

    Theirs begins at a length of 0; this one at a twentieth of the longest.

    Args:
        longest: In tokens; 5,000 are said to be enough for the strongest heads.
        haystack: Theirs differs from needle to needle; None for the shipped text.
    """
    lengths = tuple(round(each) for each in np.linspace(longest / 20, longest, 20))
    depths = tuple(np.linspace(0, 1, 10).tolist())
    haystack = shipped(ORCHARD) if haystack is None else haystack
    return Needle(lengths, depths, haystack=haystack)


@dataclass(frozen=True)
class NeedleRuns(Experiment):
    """A number for every head, from greedy decoding of an answer, a token at a time.

    Each run is decoded from the prompt's last token on, to the end of a line. It counts
    if the model found the needle. A subclass says what is recorded, and scores it.
    """

    tasks: tuple[Needle, ...] = ()
    """What is hidden where; none for `fitting_grid`. `Needle((200, 500, 800))` makes 45
    runs, `paper_grid()` the paper's 600."""
    max_new_tokens: int = 50
    """Steps of decoding at most."""
    recall: float = 0.5
    """ROUGE-1 recall of the answer above which a run counts."""
    fewest: int = 3
    """Runs that have to count, or the model has failed the task."""

    def __post_init__(self) -> None:
        """Refuse tasks that cannot be told apart."""
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise InputError(
                f"Needles are hidden by tasks of different names; got {names}. Give "
                'each its own, as in Needle(haystack=text, name="novel").'
            )

    @abstractmethod
    def statistics(self, span: tuple[int, int]) -> Sequence[Statistic]:
        """What is recorded of each step, for a needle's answer at a span."""

    @abstractmethod
    def score(
        self, steps: xr.Dataset, ids: Sequence[int], span: tuple[int, int]
    ) -> xr.DataArray:
        """The value (layer, head) of a run.

        Args:
            steps: What was recorded, over (layer, head, query, ...).
            ids: The prompt, then what was generated.
            span: Begin and end of the needle's answer in the prompt.
        """

    def run(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """The mean over the runs that count, with every run.

        Returns:
            Over (layer, head) as any experiment; runs that do not count are NaN. Along
            `<name>_run` the coordinates `<name>_accepted`, `_rouge`, `_generated` (the
            text), `_task`, `_length`, `_depth` and `_seed`. Attributes say how many
            runs there were, and the share of heads in each band of scores.

        Raises:
            InputError: The model fails the task, or has no room or no tokenizer.
            UnsupportedModelError: It is no decoder-only language model.
        """
        require_decoder(model)
        tasks = self.tasks or (fitting_grid(model, self.max_new_tokens),)
        jobs = [(task.name, item) for task in tasks for item in task.items(model)]
        for _, item in jobs:
            check(model, item)
        found = []
        for done, (_, item) in enumerate(jobs):
            if progress is not None:
                progress(self.name, done, len(jobs))
            work = partial(self._decoded, model, item)
            found.append(remembered(folder, model, self._identity(item), work))
        if progress is not None:
            progress(self.name, len(jobs), len(jobs))
        runs = self._runs(model, jobs, found)
        n_accepted = self._require_success(model, runs)
        attrs = {
            "tasks": json.dumps([task.attrs for task in tasks]),
            "n_runs": len(jobs),
            "n_accepted": n_accepted,
            **_shares(runs.mean(f"{self.name}_run")),
        }
        what = f"{n_accepted} runs in which the needle was found"
        return summarized(self, runs, what, bootstrap, attrs)

    def _identity(self, item: Item) -> list[Any]:
        """What a run depends on, beside the model."""
        options = {name: str(getattr(self, name)) for name in self._deciding}
        return [self.name, options, item.ids, item.scored, item.spans["value"]]

    @property
    def _deciding(self) -> tuple[str, ...]:
        """Options that decide what a single run gives."""
        return ("max_new_tokens",)

    def _decoded(self, model: "Model", item: Item) -> dict[str, Any]:
        """One run: the text that was generated, and the scores of all heads."""
        prompt, span = list(item.ids[: item.scored[0]]), item.spans["value"]
        tokenizer: Any = model.tokenizer

        def ends_line(ids: list[int]) -> bool:
            said = tokenizer.decode(ids)
            return bool(said.strip()) and "\n" in tokenizer.decode(ids[-1:])

        room = (model.max_tokens or np.inf) - len(prompt)
        trace = trace_decoding(
            model,
            prompt,
            self.statistics(span),
            max_new_tokens=int(min(self.max_new_tokens, room)),
            stop=ends_line,
        )
        generated = json.loads(trace.attrs["generated"])
        steps = trace["self"].to_dataset()
        scores = self.score(steps, [*prompt, *generated], span)
        text = tokenizer.decode(generated, skip_special_tokens=True)
        return {"text": text, "scores": scores.transpose(*HEADS).values.tolist()}

    def _runs(
        self,
        model: "Model",
        jobs: Sequence[tuple[str, Item]],
        found: Sequence[dict[str, Any]],
    ) -> xr.DataArray:
        """Scores of the runs, NaN where the model failed."""
        texts = [each["text"] for each in found]
        items = [item for _, item in jobs]
        pairs = zip(texts, items, strict=True)
        rouge = np.array([rouge_recall(text, item.answer) for text, item in pairs])
        labels = {name: values for name, (_, values) in coordinates(items).items()}
        names = [
            f"{task}/{name}"
            for (task, _), name in zip(jobs, labels.pop("item"), strict=True)
        ]
        runs = run_scores(
            model,
            self.name,
            [each["scores"] for each in found],
            names,
            {
                "accepted": rouge > self.recall,
                "rouge": rouge,
                "generated": strings(texts),
                "task": strings(task for task, _ in jobs),
                **labels,
            },
        )
        return runs.where(runs[f"{self.name}_accepted"])

    def _require_success(self, model: "Model", runs: xr.DataArray) -> int:
        """How many runs count.

        Raises:
            InputError: Too few.
        """
        accepted = runs[f"{self.name}_accepted"]
        n, mean = int(accepted.sum()), float(runs[f"{self.name}_rouge"].mean())
        if n < self.fewest:
            raise InputError(
                f"{self.name} is measured where a model finds needles; {model.name} "
                f"found {n} of {accepted.size}, of at least {self.fewest} needed (mean "
                f"ROUGE-1 recall {mean:.2f}). Choose a model that can, or an easier "
                "task: shorter, or chat=True for a model that was made for chats."
            )
        return n


def _shares(mean: xr.DataArray) -> dict[str, Any]:
    """Share of heads that retrieve, and of those in each band of scores."""
    scores = mean.values[np.isfinite(mean.values)]
    band = np.searchsorted(list(BANDS.values()), scores)
    shares = np.bincount(band, minlength=len(BANDS)) / len(scores)
    named = dict(zip(BANDS, shares.round(4).tolist(), strict=True))
    return {
        "share_above": float((scores > ABOVE).mean()),
        "above": ABOVE,
        "bands": json.dumps(named),
    }
