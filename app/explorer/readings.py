"""What is looked at: a text under a model, from a store or run here."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from interp import tracing
from interp.app.explorer import stores
from interp.app.explorer.models import Library
from interp.app.progress import Progress
from interp.capture import Capture, union
from interp.errors import InputError, NotCapturedError
from interp.heads import HeadSet
from interp.interventions import AblateHeads
from interp.probes import atlas as atlases
from interp.probes.activations import MassiveActivations
from interp.probes.detecting import detect
from interp.probes.detector import HEADS, Detector, site_of, statistic
from interp.probes.registry import DETECTORS, EXPERIMENTS, resolve
from interp.probes.sinks import SinkTokens
from interp.probes.tokens import over_tokens
from interp.viz import atlas as layout

TOKENS = 384
"""Of a text that is run here, unless more are asked for."""

SEEDS = (0,)
"""Of the repeated random tokens that a run here reads beside the text."""

OF_TOKENS = ("waad_tokens", "fai_tokens")
"""Preplan and anchor tokens, as detectors of any text."""

MEASURED = (*(n for n, kind in DETECTORS.items() if kind.by_default), *OF_TOKENS)
"""Detectors of a text that is run here."""


@dataclass(frozen=True)
class Reading:
    """A text as a model read it.

    Attributes:
        key: What decides all of it.
        title: Model and text.
        atlas: Nodes `heads` and `text_N`, as `interp.probes.atlas` makes them.
        node: The text's node.
        trace: As `interp.trace` returns it; None where the store has none.
        model: How the model is loaded; None where nobody knows.
        text: The text, where it was run here.
        max_tokens: Of a text that was run here.
        ablated: Heads that were taken out, as `L1.H2,L3.H4`.
        python: Lines that make `atlas` and `trace` again.
    """

    key: str
    title: str
    atlas: xr.DataTree
    node: str
    trace: xr.DataTree | None
    model: str | None
    text: str | None
    max_tokens: int | None
    ablated: str
    python: str

    @property
    def heads(self) -> xr.Dataset:
        """Every detector over (layer, head)."""
        return self.atlas["heads"].to_dataset()

    @property
    def detectors(self) -> list[str]:
        """Names of what is over (layer, head), in the order of the registry."""
        found = layout.detectors(self.atlas)
        known = [name for name in (*DETECTORS, *EXPERIMENTS) if name in found]
        return [*known, *(name for name in found if name not in known)]

    @property
    def tokens(self) -> xr.Dataset:
        """What is known of every token."""
        return self.atlas[self.node].to_dataset()

    def require_site(self, *names: str) -> xr.Dataset:
        """The trace's node of the heads, with certain statistics.

        Raises:
            NotCapturedError: The store has no trace, or the trace lacks one of them.
        """
        trace = self.require_trace()
        for name in names:
            statistic(trace, name)
        return site_of(trace).to_dataset()

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        trees = [self.atlas] + ([] if self.trace is None else [self.trace])
        return sum(node.to_dataset().nbytes for tree in trees for node in tree.subtree)

    def require_trace(self) -> xr.DataTree:
        """The trace.

        Raises:
            NotCapturedError: The store has none.
        """
        if self.trace is None:
            raise NotCapturedError(
                f"{self.title} is an atlas without the trace of its text. Keep the "
                "folder `traces` beside atlas.zarr, or choose the model as source."
            )
        return self.trace


def run(
    library: Library,
    ref: str,
    text: str,
    name: str,
    max_tokens: int,
    tell: Progress,
    ablated: str = "",
) -> Reading:
    """Let a model read a text, with every detector that reads traces."""
    kept: dict[str, xr.DataTree] = {}

    def trace(*args: object, **options: object) -> xr.DataTree:
        """As `interp.trace`; the text's trace is kept, with every statistic."""
        wanted = options["capture"]
        if options["name"] == name and isinstance(wanted, Capture):
            options["capture"] = union([wanted, Capture()])
        traced = tracing.trace(*args, **options)  # type: ignore[arg-type]
        kept[str(options["name"])] = traced
        return traced

    with library.use(ref, tell) as model, ExitStack() as stack:
        limit = min(filter(None, (max_tokens, model.max_tokens)))
        if ablated:
            heads = HeadSet.parse(ablated, model.anatomy)
            stack.enter_context(AblateHeads(heads)(model))
        tree = atlases.atlas(
            model,
            {name: text},
            detectors=MEASURED,
            seeds=SEEDS,
            max_tokens=limit,
            progress=tell,
            trace=trace,
        )
    without = f" without {ablated}" if ablated else ""
    return Reading(
        key=f"{model.content_hash} {kept[name].attrs['input_hash']} {ablated}",
        title=f"{model.name}{without} on {name.partition(' #')[0]}",
        atlas=tree,
        node="text_0",
        trace=kept[name],
        model=ref,
        text=text,
        max_tokens=limit,
        ablated=ablated,
        python=_lines(ref, limit, ablated),
    )


def stored(path: Path, node: str) -> Reading:
    """What a store holds of one text.

    Raises:
        StorageError: The store is gone or damaged.
    """
    opened = stores.open_store(path)
    traced = None
    if node in opened.traces:
        traced = stores.read_trace(opened.traces[node])
    lines = ["import interp", "import xarray as xr", ""]
    if opened.atlas is None:
        if traced is None:
            raise NotCapturedError(f"{path} holds no text {node}. Choose another.")
        tree = of_trace(traced)
        lines += [
            "from interp.probes import detect",
            "",
            f'trace = interp.open_trace("{path.name}")',
            "heads = detect(trace)",
        ]
    else:
        tree = opened.atlas
        lines.append(
            f'atlas = xr.open_datatree("{path.name}/atlas.zarr", consolidated=False)'
        )
        lines.append('heads = atlas["heads"].to_dataset()')
        lines.append(f'tokens = atlas["{node}"].to_dataset()')
        if traced is not None:
            lines.append(f'trace = interp.open_trace("{path.name}/traces/{node}.zarr")')
    name = tree[node].attrs.get("name", node)
    return Reading(
        key=f"{path} {node} {stores.identity(path)}",
        title=f"{tree.attrs.get('model', 'unnamed model')} on {name} ({path.name})",
        atlas=tree,
        node=node,
        trace=traced,
        model=str(tree.attrs.get("model", "")) or None,
        text=None,
        max_tokens=None,
        ablated="",
        python="\n".join(lines),
    )


def of_trace(trace: xr.DataTree) -> xr.DataTree:
    """A trace in the shape of an atlas: all detectors that it can feed."""
    found = detect(trace)
    heads = found[[name for name, each in found.items() if set(each.dims) == {*HEADS}]]
    others = [d for d in resolve(OF_TOKENS) if isinstance(d, Detector)]
    text = over_tokens(trace, SinkTokens(), MassiveActivations(), others)
    text.attrs.pop("skipped")
    tree = xr.DataTree.from_dict({"heads": heads.drop_attrs(deep=False)})
    tree["text_0"] = xr.DataTree(text)
    tree.attrs = {**trace.attrs, "skipped": found.attrs["skipped"], "n_texts": 1}
    return tree


def nodes_of(path: Path) -> dict[str, str]:
    """Texts of a store: what each is called, and its node.

    Raises:
        StorageError: The store is gone or damaged.
    """
    opened = stores.open_store(path)
    if opened.atlas is None:
        return {path.name: "text_0"}
    names = sorted(n for n in opened.atlas.children if n.startswith("text_"))
    if not names:
        raise InputError(f"{path} holds no text. Choose another source.")
    return {f"{opened.atlas[n].attrs.get('name', n)} ({n})": n for n in names}


def skipped(reading: Reading) -> Sequence[tuple[str, str]]:
    """What could not be measured, and why."""
    entries = json.loads(reading.atlas.attrs.get("skipped", "[]"))
    return [(str(each["what"]), str(each["why"])) for each in entries]


def _lines(ref: str, max_tokens: int, ablated: str) -> str:
    lines = [
        "import interp",
        "from interp.interventions import AblateHeads",
        "from interp.probes.atlas import atlas",
        "",
        f'model = interp.load("{ref}")',
        'text = open("text.txt").read()  # the text of this page',
    ]
    call = [
        f"trace = interp.trace(model, text, max_tokens={max_tokens})",
        f'tree = atlas(model, {{"text": text}}, max_tokens={max_tokens})',
        'heads = tree["heads"].to_dataset()',
        'tokens = tree["text_0"].to_dataset()',
    ]
    if ablated:
        lines.append(f'gone = interp.HeadSet.parse("{ablated}", model.anatomy)')
        lines.append("with AblateHeads(gone)(model):")
        call = [f"    {line}" for line in call]
    else:
        lines.remove("from interp.interventions import AblateHeads")
    return "\n".join(lines + call)
