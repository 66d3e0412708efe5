"""`interp bench kernels`: statistics of one attention call beside its forward."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from interp.app.bench.clock import Cost, Effort, attempt, measure
from interp.app.bench.forwards import FORWARDS, forwards
from interp.app.bench.inputs import (
    layer_or_middle,
    model_call,
    random_call,
    require_positions,
)
from interp.app.bench.passes import PASSES, TRUSTED, Yardstick, pass_routes
from interp.app.bench.peers import PEERS, peer_routes
from interp.app.bench.race import Entrant, races
from interp.app.bench.routes import Route, deviation
from interp.app.bench.table import device_name, markdown
from interp.app.progress import Progress
from interp.errors import InputError
from interp.kernels import fused, statistics
from interp.kernels.definitions import Lse
from interp.kernels.rules import AttentionCall
from interp.models import Model

CHECKED_LENGTH = 8192
"""Tokens up to which results are compared with the trusted ones."""


@dataclass(frozen=True)
class Random:
    """Random queries and keys.

    Attributes:
        heads: Query heads.
        kv_heads: Key and value heads.
        width: Of a head.
        window: Tokens that a query sees, or None for all before it.
    """

    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    window: int | None = None

    def __post_init__(self) -> None:
        """Refuse heads that do not divide among the key and value heads."""
        if self.heads % self.kv_heads:
            raise InputError(
                f"--heads {self.heads} with --kv-heads {self.kv_heads} was asked for: "
                "some would be shared unequally. Give a multiple."
            )

    def __str__(self) -> str:
        """As a title says it."""
        rule = "causal" if self.window is None else f"window {self.window:,}"
        return f"random, {self.heads}/{self.kv_heads} heads of {self.width}, {rule}"


@dataclass(frozen=True)
class Real:
    """Queries and keys of a layer of a model on the shipped text.

    Attributes:
        model: Loaded, on the device and in the type to measure.
        layer: Whose attention is taken; None is the middle one.
    """

    model: Model
    layer: int | None = None

    def __str__(self) -> str:
        """As a title says it."""
        return f"{self.model.name}, layer {layer_or_middle(self.model, self.layer)}"


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        data: Where query and key come from.
        lengths: Tokens.
        dtype: Of query and key.
        device: Where everything runs.
        routes: Names; None is all. Without a forward among them every forward is
            measured as well, as ratios are to the fastest.
        passes: Names of `PASSES`; None is all.
        effort: How often.
    """

    data: Random | Real
    lengths: Sequence[int]
    dtype: torch.dtype
    device: torch.device
    routes: Sequence[str] | None = None
    passes: Sequence[str] | None = None
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        """Refuse names that there are not, and a layer that the model has not."""
        known = [*FORWARDS, *statistics.IMPLEMENTATIONS, *PEERS]
        _check_names("--routes", self.routes, known)
        _check_names("--passes", self.passes, list(PASSES))
        if isinstance(self.data, Real):
            layer_or_middle(self.data.model, self.data.layer)
            require_positions(self.data.model, max(self.lengths))

    def call(self, length: int) -> AttentionCall:
        """The attention call of that many tokens."""
        data = self.data
        if isinstance(data, Real):
            return model_call(
                data.model, length, layer_or_middle(data.model, data.layer)
            )
        shape = (data.heads, data.kv_heads, data.width, data.window)
        return random_call(length, *shape, self.dtype, self.device)

    def runs(self, name: str) -> bool:
        """Whether a route of that name is measured."""
        if self.routes is None or name in self.routes:
            return True
        return name in FORWARDS and not set(FORWARDS) & set(self.routes)


def kernels_table(request: Request, progress: Progress, command: str) -> str:
    """The table of all routes and lengths, in Markdown."""
    rows, not_run = races(
        request.lengths, lambda length: _line_up(request, length), 1e3, progress
    )
    on_gpu = request.device.type == "cuda"
    return markdown(
        f"Kernels: {request.data}, {str(request.dtype).removeprefix('torch.')} on "
        f"{device_name(request.device)}",
        command,
        f"{'device' if on_gpu else 'CPU'} time, {request.effort}; ratios are to the "
        "fastest forward of the same length; extra memory is the peak during a call, "
        f"results included; off by is the largest difference from {TRUSTED}, relative "
        f"to the largest value of the array, up to {CHECKED_LENGTH:,} tokens.",
        ("tokens:", "route", "ms:", "ratio:", "extra MiB:", "off by:"),
        rows,
        not_run,
    )


def _line_up(request: Request, length: int) -> list[Entrant]:
    call = request.call(length)
    with torch.no_grad():
        done = fused.attend(call)
        lse = statistics.compute(call, [Lse()])["lse"] if done is None else done[1]
    yardstick = Yardstick(call, lse)
    names = request.passes or list(PASSES)
    routes = [
        *forwards(call, lambda: yardstick("lse")),
        *pass_routes(call, lse, names, yardstick),
        *peer_routes(call, lse, lambda: yardstick("basic")),
    ]
    is_checked = length <= CHECKED_LENGTH
    return [
        Entrant(
            route.words,
            route.name in FORWARDS,
            lambda route=route: _run(route, request, is_checked),
        )
        for route in routes
        if request.runs(route.name)
    ]


def _run(route: Route, request: Request, is_checked: bool) -> tuple[Cost, list[str]]:
    work = route.prepare()
    cost = measure(work, request.device, request.effort)
    if not is_checked or route.name == TRUSTED:
        return cost, []
    with torch.no_grad():
        off = attempt(lambda: deviation(route.arrays(work()), route.expected()))
    return cost, [off if isinstance(off, str) else f"{off:.1e}"]


def _check_names(option: str, names: Sequence[str] | None, known: list[str]) -> None:
    for name in names or ():
        if name not in known:
            raise InputError(
                f"{option} was given {name!r}, which there is not. Choose from "
                f"{', '.join(known)}."
            )
