"""The commands `interp bench ...`: each prints a table, and appends it where asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.app.options import Device, Reference, lengths, split, typed
from interp.app.progress import Progress, progress_bars
from interp.errors import InputError

if TYPE_CHECKING:
    import torch

    from interp.models import Model

bench = typer.Typer(help="Measure this machine, side by side with what others use.")

Out = Annotated[Path | None, typer.Option(help="Append the table here.")]
Tokens = Annotated[
    str | None, typer.Option(help="Lengths. Unset: long ones on a GPU, 512,2048 else.")
]
Type = Annotated[str, typer.Option(help="float32, bfloat16, float16.")]


@bench.command("tap")
def bench_tap(
    model: Reference = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="Lengths.")] = "512,1024,2048,4096,8192",
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    out: Out = None,
) -> None:
    """A traced forward beside an untraced one and transformers' eager attention."""
    from interp.app.bench.tap import tap_table

    wanted = lengths(tokens)
    with _publishing(out) as publish, progress_bars() as progress:
        publish(tap_table(model, wanted, repeats, threads, progress, typed()))


@bench.command("doors")
def bench_doors(
    model: Reference = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="Lengths.")] = "2048",
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    out: Out = None,
) -> None:
    """The same statistics through every door, beside keeping every pattern."""
    from interp.app.bench.doors import doors_table

    wanted = lengths(tokens)
    with _publishing(out) as publish, progress_bars() as progress:
        publish(doors_table(model, wanted, repeats, threads, progress, typed()))


@bench.command("generation")
def bench_generation(
    model: Reference = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="How many new ones.")] = "256",
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    out: Out = None,
) -> None:
    """A text that is written and traced, beside one that is only written."""
    from interp.app.bench.generation import generation_table

    wanted = lengths(tokens)
    with _publishing(out) as publish, progress_bars() as progress:
        publish(generation_table(model, wanted, repeats, threads, progress, typed()))


@bench.command("sweep")
def bench_sweep(
    model: Reference = "smollm2-135m",
    tokens: Annotated[int, typer.Option(min=2, help="Of the text.")] = 512,
    every: Annotated[
        int, typer.Option(min=1, help="Ablate every n-th head; 1 for all.")
    ] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    routes: Annotated[
        str | None, typer.Option(help="Names with commas between. Unset: all.")
    ] = None,
    out: Out = None,
) -> None:
    """Ablating every head alone, beside the loops of other tools."""
    from interp.app.bench.sweep import sweep_table

    with _publishing(out) as publish, progress_bars() as progress:
        names = split("--routes", routes)
        publish(sweep_table(model, tokens, every, threads, names, progress, typed()))


@bench.command("retrieval")
def bench_retrieval(
    model: Reference = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="Lengths.")] = "200,500,800",
    depths: Annotated[int, typer.Option(min=1, help="Places of each needle.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    routes: Annotated[
        str | None, typer.Option(help="Names with commas between. Unset: all.")
    ] = None,
    out: Out = None,
) -> None:
    """Scoring every head on needles, beside loops over an eager model's weights."""
    from interp.app.bench.retrieval import retrieval_table

    wanted, names = lengths(tokens), split("--routes", routes)
    with _publishing(out) as publish, progress_bars() as progress:
        publish(
            retrieval_table(model, wanted, depths, threads, names, progress, typed())
        )


@bench.command("rhythm")
def bench_rhythm(
    model: Reference = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="Lengths.")] = "2048,8192",
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    out: Out = None,
) -> None:
    """The rhythm of a text beside an untraced forward and all eager maps."""
    from interp.app.bench.rhythm import rhythm_table

    wanted = lengths(tokens)
    with _publishing(out) as publish, progress_bars() as progress:
        publish(rhythm_table(model, wanted, repeats, threads, progress, typed()))


@bench.command("kernels")
def bench_kernels(
    tokens: Tokens = None,
    heads: Annotated[int, typer.Option(min=1, help="Of random data.")] = 32,
    kv_heads: Annotated[int, typer.Option(min=1, help="Of random data.")] = 8,
    head_dim: Annotated[int, typer.Option(min=1, help="Of random data.")] = 128,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens a query sees, of random data.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="random, or a model whose queries and keys to take.")
    ] = "random",
    layer: Annotated[
        int | None, typer.Option(min=0, help="Of the model. Unset: the middle one.")
    ] = None,
    routes: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between. Unset: all. A wrong one lists them. "
            "Forwards are measured unless one is named: ratios are to the fastest."
        ),
    ] = None,
    passes: Annotated[
        str | None, typer.Option(help="Sets of statistics, like --routes.")
    ] = None,
    dtype: Type = "bfloat16",
    device: Device = "auto",
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Timed calls of a route. Unset: budget.")
    ] = None,
    budget_ms: Annotated[
        float, typer.Option(min=0, help="Timed calls of a route take about this.")
    ] = 200.0,
    out: Out = None,
) -> None:
    """Statistics of one attention call beside forwards, eager maps and other tools."""
    from interp.app.bench.clock import Effort
    from interp.app.bench.inputs import place_and_type
    from interp.app.bench.kernels import Random, Real, Request, kernels_table

    place, kind = place_and_type(device, dtype)
    with _publishing(out) as publish, progress_bars() as progress:
        request = Request(
            data=Random(heads, kv_heads, head_dim, window)
            if data == "random"
            else Real(_load(data, device, dtype, progress), layer),
            lengths=_lengths(tokens, place, "8192,32768"),
            dtype=kind,
            device=place,
            routes=split("--routes", routes),
            passes=split("--passes", passes),
            effort=Effort(repeats, budget_ms / 1e3),
        )
        publish(kernels_table(request, progress, typed()))


@bench.command("prefill")
def bench_prefill(
    model: Annotated[
        str | None, typer.Option(help="Catalog name, hub id, folder or .gguf file.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="A Llama with random weights: 8b or tiny. Unset: 8b."),
    ] = None,
    tokens: Tokens = None,
    dtype: Type = "bfloat16",
    device: Device = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Timed forwards.")] = 2,
    out: Out = None,
) -> None:
    """A traced forward beside the fastest untraced one, on the device."""
    from interp.app.bench.clock import Effort
    from interp.app.bench.inputs import place_and_type, random_llama
    from interp.app.bench.prefill import Request, prefill_table

    if model is not None and shape is not None:
        raise InputError(
            f"--model {model} and --shape {shape} were both given. Give one of them."
        )
    place, kind = place_and_type(device, dtype)
    wanted = _lengths(tokens, place, "8192,32768,131072")
    with _publishing(out) as publish, progress_bars() as progress:
        if model is not None:
            loaded = _load(model, device, dtype, progress)
        else:
            loaded = random_llama(shape or "8b", kind, place)
        request = Request(loaded, wanted, Effort(repeats))
        publish(prefill_table(request, progress, typed()))


@bench.command("tune")
def bench_tune(
    tokens: Annotated[int, typer.Option(min=1, help="Length.")] = 16384,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of a head.")] = 128,
    dtype: Type = "bfloat16",
    device: Device = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 5,
    out: Out = None,
) -> None:
    """Other tile sizes beside those of kernels/triton_tables.py, on this GPU."""
    from interp.app.bench.clock import Effort
    from interp.app.bench.inputs import place_and_type
    from interp.app.bench.tune import tune_table

    place, kind = place_and_type(device, dtype)
    with _publishing(out) as publish, progress_bars() as progress:
        effort = Effort(repeats)
        table = tune_table(tokens, head_dim, kind, place, effort, progress, typed())
        publish(table)


def _lengths(tokens: str | None, place: "torch.device", on_gpu: str) -> list[int]:
    usual = on_gpu if place.type == "cuda" else "512,2048"
    return lengths(usual if tokens is None else tokens)


def _load(model: str, device: str, dtype: str, progress: Progress) -> "Model":
    import interp

    return interp.load(
        model, device=device, dtype=dtype, progress=lambda step: progress(step, 0, 0)
    )


@contextmanager
def _publishing(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Prints a table and appends it; the file is opened before the work begins."""
    tables: list[str] = []
    if path is None:
        yield tables.append
    else:
        try:
            file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{path} cannot be written: {error.strerror}. Choose another file with "
                "--out."
            ) from error
        with file:
            yield tables.append
            file.writelines(tables)
    for table in tables:
        typer.echo(table)
