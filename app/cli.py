"""The command line: reads arguments, shows progress, turns errors into exit codes.

Exit codes: 0 done, 1 our mistake, 2 the caller's (one line on stderr), 130 interrupted.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from interp.errors import InterpError

app = typer.Typer(
    help="Interpretability of attention, at any length, without the N x N map.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
bench = typer.Typer(help="Measure this machine, side by side with what others use.")
app.add_typer(bench, name="bench")

errors = Console(stderr=True, highlight=False)

UsageError: Any = typer.BadParameter.__base__
"""Of every wrong argument; typer does not name it."""

Reference = Annotated[
    str, typer.Argument(help="Catalog name, hub id, local folder or .gguf file.")
]
TextFiles = Annotated[
    list[Path] | None, typer.Option("--text", help="UTF-8 text; may be repeated.")
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Keep at most this many tokens of each text.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, ...; float32 on a CPU if unset.")
]
Names = Annotated[str | None, typer.Option(help="Names, separated by commas.")]


@app.command()
def atlas(
    model: Reference,
    text: TextFiles = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    max_tokens: MaxTokens = None,
    detectors: Names = None,
    seed: Annotated[int, typer.Option(help="Of random tokens and intervals.")] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Every detector on every head: atlas.csv, atlas.zarr, index.html, run.json."""
    from interp.app.atlas import Request, run
    from interp.app.texts import read_texts
    from interp.probes import resolve

    request = Request(
        model=model,
        texts=read_texts(text),
        out=out or Path(f"atlas-{Path(model).stem}"),
        detectors=tuple(d.name for d in resolve(_split(detectors))),
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        command=_command(),
    )
    with _progress() as progress:
        page, already = run(request, progress)
    if already:
        errors.print("This atlas is complete; nothing was left to do.")
    typer.echo(page)


@app.command()
def trace(
    model: Reference,
    text: Annotated[Path, typer.Option(help="UTF-8 text.")],
    out: Annotated[Path, typer.Option(help="Zarr store to write or go on with.")],
    statistics: Names = None,
    max_tokens: MaxTokens = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Statistics of every head on one text, into a Zarr store."""
    import interp
    from interp.app.texts import parse_statistics, read_texts

    [(name, content)] = read_texts([text]).items()
    capture = parse_statistics(_split(statistics))
    with _progress() as progress:
        loaded = interp.load(
            model,
            device=device,
            dtype=dtype,
            progress=lambda step: progress(step, 0, 0),
        )
        interp.trace(
            loaded,
            content,
            capture=capture,
            out=out,
            max_tokens=max_tokens,
            name=name,
            progress=lambda done, total: progress(name, done, total),
        )
    typer.echo(out)


@app.command()
def heads(
    results: Annotated[Path, typer.Argument(help="Folder that `interp atlas` wrote.")],
    only: Annotated[str | None, typer.Option("--heads", help="L12.H7,L3.H1")] = None,
    by: Annotated[str, typer.Option(help="Detector to sort by.")] = "sinks",
    top: Annotated[int, typer.Option(min=1, help="How many heads.")] = 10,
) -> None:
    """The strongest heads of an atlas, or named ones, as a table."""
    from interp.app.atlas import rows

    names, table = rows(results, only, by, top)
    view = Table()
    for name in names:
        view.add_column(name, justify="right", no_wrap=True)
    for row in table:
        view.add_row(*row)
    Console().print(view)


@app.command()
def models() -> None:
    """The catalog: real models that install from the package index."""
    from interp import catalog

    view = Table("name", "size", "licence", "installed", "what it is")
    for entry in catalog.entries():
        size = f"{entry.size_bytes / 1e6:.0f} MB"
        here = "yes" if catalog.installed(entry.name) else "no"
        view.add_row(entry.name, size, entry.licence, here, entry.description)
    Console().print(view)


@bench.command("tap")
def bench_tap(
    model: Reference = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="Lengths.")] = "512,1024,2048,4096,8192",
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Append the table here.")] = None,
) -> None:
    """A traced forward beside an untraced one and transformers' eager attention."""
    from interp.app.bench import tap_table

    lengths = [_whole(part) for part in _split(tokens) or []]
    with _progress() as progress:
        table = tap_table(model, lengths, repeats, threads, progress, _command())
    if out is not None:
        with out.open("a") as file:
            file.write(table)
    typer.echo(table)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app(standalone_mode=False)
    except InterpError as error:
        _say(str(error))
        sys.exit(2)
    except UsageError as error:
        _say(f"{error.format_message()} See interp --help.")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        _say("Interrupted. What was finished is kept; run the same command to go on.")
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)


def _say(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"interp: {' '.join(message.split())}\n")


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [n.strip() for n in names.split(",") if n.strip()]


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise typer.BadParameter(f"lengths are whole numbers from 2 on; got {text!r}")
    return int(text)


def _command() -> str:
    return " ".join(["interp", *sys.argv[1:]])


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step, on stderr."""
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=errors, transient=False) as bars:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=max(total, 1))
            done, total = (1, 1) if total == 0 else (done, total)
            bars.update(tasks[step], completed=done, total=total)

        yield update
