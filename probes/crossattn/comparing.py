"""Attention against saliency, of every utterance, as one labelled tree."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interp.forward import evaluating
from interp.heads import HeadSet
from interp.models import Model, load
from interp.probes.crossattn.agreement import (
    rotations,
    scaled,
    summary,
    token_values,
)
from interp.probes.crossattn.faithfulness import areas, curves
from interp.probes.crossattn.forced import Forced
from interp.probes.crossattn.measures import TOP
from interp.probes.crossattn.nodes import (
    attention_of,
    described,
    explanations,
    only_visible,
    saliency_of,
)
from interp.probes.crossattn.parts import Parts
from interp.probes.crossattn.saliency import Options, Progress, named
from interp.probes.crossattn.timing import (
    CHOSEN,
    ranked_heads,
    token_times,
    words_of,
)
from interp.probes.crossattn.utterances import MOST_TOKENS, Utterance, utterances

PUBLISHED = (
    {
        "what": "cross-attention against perturbation saliency of the input, best "
        "aggregate, Pearson",
        "low": 0.49,
        "high": 0.63,
        "source": "Papi et al. 2025, arXiv:2509.18010: Conformer encoders of 125M "
        "parameters and more, English speech recognition",
    },
    {
        "what": "the same against saliency of encoder outputs",
        "low": 0.52,
        "high": 0.75,
        "source": "Papi et al. 2025, arXiv:2509.18010",
    },
    {
        "what": "context mixing: the second less the first",
        "low": 0.03,
        "high": 0.18,
        "source": "Papi et al. 2025, arXiv:2509.18010",
    },
)


def compare(
    model: Any,
    given: Any,
    *,
    methods: Sequence[str] | None = None,
    text: str | Sequence[str] | None = None,
    heads: HeadSet | None = None,
    options: Options | None = None,
    top: float = TOP,
    max_tokens: int = MOST_TOKENS,
    faithfulness: bool = True,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = lambda step, done, total: None,
) -> xr.DataTree:
    """How far attention agrees with saliency, of each output token over the input.

    Args:
        model: From `interp.load`, or what it takes. An encoder-decoder of speech or
            text, whose cross-attention is looked at, or a decoder alone, whose
            attention is.
        given: A recording (path or `Sound`) or a text, or several.
        methods: Of saliency, of `interp.probes.crossattn.METHODS`; all for None.
        text: What is written, one for each utterance; by default what the model
            itself writes. A decoder alone writes what it reads.
        heads: The heads that the aggregate is the mean of; all for None.
        options: How much is computed, and the choices that papers leave open.
        top: Share of positions whose overlap is `topk`.
        max_tokens: Output tokens of an utterance at most.
        faithfulness: Also make deletion and insertion curves.
        seed: Of intervals, of chance and of random orders.
        out: A folder for finished pieces, from which an interrupted run goes on.
        progress: Told a step, how much of it is done, and of how much.

    Returns:
        A node `utterance_N` for each window of a recording or text, with attention
        (layer, head, token, position), saliency (space, attribution, token, position),
        its full map over (frame, channel), baselines, errors, and, below it, `words`
        and `curves`; `agreement`, `faithfulness` and `timing` over all of them.

    Raises:
        InputError: Nothing usable was given.
        UnsupportedModelError: The model writes no text, its attention cannot be
            reached, or captum is needed and not installed.
        StorageError: `out` cannot be written.
    """
    model = model if isinstance(model, Model) else load(model)
    run = _Run(
        model,
        named(methods),
        options or Options(seed=seed),
        heads,
        top,
        faithfulness,
        seed,
        progress,
    )
    parts = Parts(None if out is None else Path(out))
    progress("writing the text", 0, 0)
    with evaluating(model.module), _frozen(model):
        found = utterances(
            model, given, text=text, max_tokens=max_tokens, silent=run.leave_out
        )
        for number, utterance in enumerate(found):
            run.add(f"utterance_{number}", utterance, parts)
    return run.tree()


@dataclass
class _Run:
    """The utterances that are done, and what is made of all of them."""

    model: Model
    methods: tuple[str, ...]
    options: Options
    heads: HeadSet | None
    top: float
    faithfulness: bool
    seed: int
    progress: Progress
    nodes: dict[str, xr.Dataset] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    kind: str = ""

    def add(self, name: str, utterance: Utterance, parts: Parts) -> None:
        """Everything of one utterance."""
        self.kind = utterance.kind
        self.model.anatomy.require_attention()
        forced = Forced(self.model, utterance)
        parts = parts.below(_key(self.model, utterance))

        def tell(step: str, done: int, total: int) -> None:
            said = f"{step}, part {len(self.names) + 1}" if self.names else step
            self.progress(said, done, total)

        node = described(forced)
        tell("attention", 0, 0)
        maps, skipped = attention_of(forced, self.heads)
        self.skipped += [each for each in skipped if each not in self.skipped]
        node.update(maps)
        node.update(saliency_of(forced, self.methods, self.options, parts, tell))
        if forced.is_decoder:
            node = only_visible(node, forced)
        self.nodes[f"/{name}"] = node
        if self.faithfulness:
            self.nodes[f"/{name}/curves"] = curves(
                forced,
                explanations(node),
                fill=self.options.fill,
                seed=self.seed,
                parts=parts,
                progress=lambda done, total: tell("deletion, insertion", done, total),
            )
        self.names.append(name)

    def leave_out(self, name: str) -> None:
        """A window without words."""
        self.skipped.append({"what": name, "why": "the model writes nothing for it"})

    def tree(self) -> xr.DataTree:
        """All utterances, and what they say together."""
        self.progress("agreement", 0, 0)
        each = [self.nodes[f"/{name}"] for name in self.names]
        unit, unit_name = 1.0, "tokens"
        if self.kind == "speech":
            unit, unit_name = float(each[0].attrs["position_ms"]), "ms"
        values = [token_values(one, self.top) for one in each]
        turned = [rotations(one, self.top) for one in each]
        self.nodes["/agreement"] = summary(
            values, turned, unit=unit, unit_name=unit_name, seed=self.seed
        )
        for name, one in zip(self.names, values, strict=True):
            says = {"units": f"see measure_units ({unit_name})"}
            says["long_name"] = "agreement of attention with saliency"
            own = scaled(one, unit)["overall"].assign_attrs(says)
            self.nodes[f"/{name}"]["token_agreement"] = own
        if self.kind == "speech":
            self._time()
        if self.faithfulness:
            together = [self.nodes[f"/{name}/curves"] for name in self.names]
            self.nodes["/faithfulness"] = areas(together, self.seed)
        attrs = self._attrs()
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **self.nodes})

    def _time(self) -> None:
        peaks = self.nodes["/agreement"]["by_head"].sel(space="input", measure="peak")
        ranks = ranked_heads(peaks.mean("attribution").values)
        self.nodes["/timing"] = ranks.assign_attrs(chosen_heads=CHOSEN)
        chosen = ranks["chosen"].values.astype(bool)
        for name in self.names:
            node = self.nodes[f"/{name}"]
            seconds = node.attrs["position_ms"] / 1000
            times = token_times(node["attention"].values[chosen], seconds)
            for which, label in enumerate(("token_begin", "token_end")):
                says = {"units": "s", "long_name": label.replace("_", " ")}
                node[label] = ("token", times[:, which], says)
            tokens = [str(token) for token in node["token_text"].values]
            self.nodes[f"/{name}/words"] = words_of(tokens, times)

    def _attrs(self) -> dict[str, Any]:
        parameters = asdict(self.options) | {"top": self.top}
        return {
            "model": self.model.name,
            "model_hash": self.model.content_hash,
            "model_type": self.model.anatomy.model_type,
            "kind": self.kind,
            "seed": self.seed,
            "methods": json.dumps(self.methods),
            "parameters": json.dumps(parameters),
            "heads": "all" if self.heads is None else str(self.heads),
            "skipped": json.dumps(self.skipped),
            "published": json.dumps(PUBLISHED if self.kind == "speech" else ()),
            "n_utterances": len(self.names),
            "n_tokens": sum(self.nodes[f"/{n}"].sizes["token"] for n in self.names),
        }


def _key(model: Model, utterance: Utterance) -> str:
    """Name of the folder of an utterance's pieces: all that they depend on."""
    place = [str(model.device), str(model.dtype), torch.__version__]
    whole = [model.content_hash, utterance.content_hash, *place]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:24]


@contextmanager
def _frozen(model: Model) -> Iterator[None]:
    """No gradients by weights meanwhile: none is wanted, and they take memory."""
    taking = [each for each in model.module.parameters() if each.requires_grad]
    for each in taking:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in taking:
            each.requires_grad_(True)
