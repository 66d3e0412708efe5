"""`interp bench prefill`: a traced forward beside the fastest untraced one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from interp.app.bench.clock import Cost, Effort, NotApplicable, measure
from interp.app.bench.inputs import forward, random_ids, text_ids
from interp.app.bench.race import Entrant, races
from interp.app.bench.table import device_name, markdown
from interp.app.progress import Progress
from interp.capture import Capture, TokenEdges
from interp.errors import InputError
from interp.inputs import prepare, token_edges
from interp.kernels.definitions import COLUMNS, ROWS
from interp.models import Model
from interp.tap import tap
from interp.tracing import trace

Work = Callable[[], object]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        model: Loaded, on the device and in the type to measure.
        lengths: Tokens.
        effort: How often.
    """

    model: Model
    lengths: Sequence[int]
    effort: Effort

    def __post_init__(self) -> None:
        """Refuse a model that cannot be traced, and a text that it cannot read."""
        self.model.anatomy.require_attention()
        limit, longest = self.model.max_tokens, max(self.lengths)
        if limit is not None and longest > limit:
            raise InputError(
                f"{longest:,} tokens were asked for; {self.model.name} takes at most "
                f"{limit:,}. Ask for fewer with --tokens."
            )


def prefill_table(request: Request, progress: Progress, command: str) -> str:
    """The table of all routes and lengths, in Markdown."""
    rows, not_run = races(
        request.lengths, lambda length: _line_up(request, length), 1.0, progress
    )
    model = request.model
    on_gpu = model.device.type == "cuda"
    size = sum(p.numel() for p in model.module.parameters())
    return markdown(
        f"Prefill: {model.name}, {str(model.dtype).removeprefix('torch.')} on "
        f"{device_name(model.device)}",
        command,
        f"{size:,} parameters, one text, logits of the last token only; "
        f"{'seconds' if on_gpu else 'CPU seconds'}, {request.effort}; ratios are to "
        "the fastest untraced forward of the same length; extra memory is the peak "
        "above the loaded model.",
        ("tokens:", "route", "s:", "ratio:", "extra MiB:"),
        rows,
        not_run,
    )


def _line_up(request: Request, length: int) -> list[Entrant]:
    model = request.model
    ids = (text_ids if model.tokenizer else random_ids)(model, length)

    def entrant(words: str, prepare: Callable[[], Work], is_base: bool) -> Entrant:
        def run() -> tuple[Cost, list[str]]:
            return measure(prepare(), model.device, request.effort), []

        return Entrant(words, is_base, run)

    return [
        entrant("forward, SDPA", partial(_untraced, model, ids), True),
        entrant("forward, SDPA by cuDNN", partial(_cudnn, model, ids), True),
        entrant(
            "tap: every row and column statistic, edges; dropped",
            partial(_tapped, model, ids),
            False,
        ),
        entrant(
            "interp.trace: the same, kept",
            partial(_traced, model, ids, Capture(residual=False)),
            False,
        ),
        entrant(
            "interp.trace: the same and the residual stream",
            partial(_traced, model, ids, Capture()),
            False,
        ),
    ]


def _untraced(model: Model, ids: Tensor) -> Work:
    model.module.set_attn_implementation("sdpa")
    return partial(forward, model.module, ids.to(model.device))


def _cudnn(model: Model, ids: Tensor) -> Work:
    if model.device.type != "cuda":
        raise NotApplicable("it needs a GPU")
    untraced = _untraced(model, ids)

    def work() -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            untraced()

    return work


def _tapped(model: Model, ids: Tensor) -> Work:
    prepared = prepare(model, ids)
    untraced = _untraced(model, ids)
    wanted = {}
    for site in model.anatomy.site_names:
        edges = token_edges(TokenEdges(), prepared.sides(site)[0])
        wanted[site] = [*ROWS, *COLUMNS, *([edges] if edges else [])]

    def work() -> None:
        with tap(
            model.module,
            lambda visit: None,
            anatomy=model.anatomy,
            wanted=lambda site: wanted[site.name],
        ):
            untraced()

    return work


def _traced(model: Model, ids: Tensor, capture: Capture) -> Work:
    return partial(trace, model, ids, capture=capture)
