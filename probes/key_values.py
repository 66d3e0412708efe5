"""Heads that copy a value from a JSON object once its key is given."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.capture import Capture
from interp.decoding import trace_decoding
from interp.errors import InputError
from interp.evaluation import check, coordinates, logits, require_decoder
from interp.kernels.definitions import TopKeys
from interp.metrics import score
from interp.probes.copying import copied_keys
from interp.probes.detector import HEADS
from interp.probes.experiment import Experiment, Progress
from interp.probes.memo import remembered
from interp.probes.reading import Bootstrap
from interp.probes.run_scores import run_scores, summarized
from interp.tasks import Item, KeyValue
from interp.tasks.reading import ORCHARD, shipped
from interp.tracing import trace

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class KeyValueRetrieval(Experiment):
    """How often each head looks at the token that comes next, while a value is copied.

    The answer is given by default (teacher forcing): then every model and every head is
    asked about the same rows. Small models copy a value well but often begin another
    one. Generated, tokens that are not in the answer count for no head.
    """

    task: KeyValue | None = None
    """None for ten pairs, whose values no task reads unasked. The paper: 800 seeds, as
    many pairs as fit 4,096 tokens."""
    top: int = 1
    """Most attended keys that are looked at; the paper takes 1."""
    inside: bool = False
    """Ask that the key lies in the value; the paper takes any key."""
    forced: bool = True
    """Read the right answer; False lets the model generate as many tokens."""
    accuracy: float = 0.5
    """Share of the answers' tokens that the model has to give, or it fails the task."""

    name = "key_value_retrieval"
    unit = "fraction"
    long_name = "key-value retrieval score"
    description = (
        "Share of the tokens of a value asked for by its key at which the head looks "
        "most at an earlier occurrence of that very token."
    )
    source = (
        "AttentionInfluence (arXiv:2505.07293), step 1; the answer is given unless "
        "asked otherwise"
    )

    def run(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        bootstrap: Bootstrap | None = None,
        progress: Progress | None = None,
    ) -> xr.Dataset:
        """The mean over items, with every item.

        Returns:
            Over (layer, head) as any experiment. Along `key_value_retrieval_run` the
            coordinate `key_value_retrieval_accuracy`, the share of the answer's tokens
            that the model gives in their place, and the items' labels.

        Raises:
            InputError: The model fails the task, or has no room or no tokenizer.
            UnsupportedModelError: It is no decoder-only language model.
        """
        require_decoder(model)
        task = self.task or KeyValue(haystack=shipped(ORCHARD))
        items = task.items(model)
        for item in items:
            check(model, item)
        measure = self._forced if self.forced else self._generated
        found = []
        for done, item in enumerate(items):
            if progress is not None:
                progress(self.name, done, len(items))
            options = [self.name, self.top, self.inside, self.forced]
            identity = [*options, item.ids, item.scored, item.spans["value"]]
            work = partial(measure, model, item)
            found.append(remembered(folder, model, identity, work))
        if progress is not None:
            progress(self.name, len(items), len(items))
        accuracy = np.array([each["accuracy"] for each in found])
        if not accuracy.mean() >= self.accuracy:
            raise InputError(
                f"{self.name} is measured where a model copies values; {model.name} "
                f"gives {accuracy.mean():.0%} of the tokens of {len(items)} values, of "
                f"at least {self.accuracy:.0%} needed. Choose a model that can, or "
                "fewer pairs."
            )
        labels = {name: values for name, (_, values) in coordinates(items).items()}
        names = labels.pop("item")
        labels["accuracy"] = accuracy
        scores = [each["scores"] for each in found]
        runs = run_scores(model, self.name, scores, names, labels)
        attrs = {"tasks": json.dumps([task.attrs]), "n_runs": len(items)}
        return summarized(self, runs, f"{len(items)} values", bootstrap, attrs)

    def _forced(self, model: "Model", item: Item) -> dict[str, Any]:
        """An item whose answer is read."""
        begin, end = item.scored
        capture = Capture((TopKeys(self.top),), None, residual=False)
        keys = trace(model, list(item.ids), capture=capture)["self"].to_dataset()[
            "top_key"
        ]
        keys = keys.sel(query=slice(begin - 1, end - 2))
        accuracy = score(logits(model, item), item)["accuracy"]
        return self._found(keys, item.ids, item) | {"accuracy": accuracy}

    def _generated(self, model: "Model", item: Item) -> dict[str, Any]:
        """An item that the model answers."""
        begin, end = item.scored
        prompt, answer = list(item.ids[:begin]), item.ids[begin:end]
        statistics, n = (TopKeys(self.top),), len(answer)
        decoded = trace_decoding(model, prompt, statistics, max_new_tokens=n)
        said = json.loads(decoded.attrs["generated"])
        rows = [begin - 1 + step for step, each in enumerate(said) if each in answer]
        keys = decoded["self"].to_dataset()["top_key"].sel(query=rows)
        right = sum(a == b for a, b in zip(said, answer, strict=False))
        return self._found(keys, [*prompt, *said], item) | {"accuracy": right / n}

    def _found(
        self, keys: xr.DataArray, ids: Any, item: Item
    ) -> dict[str, list[list[float]]]:
        """Rows that copy, for each token of the answer."""
        copied = copied_keys(keys, ids, item.spans["value"] if self.inside else None)
        begin, end = item.scored
        share = (copied >= 0).sum("query") / (end - begin)
        return {"scores": share.transpose(*HEADS).values.tolist()}
