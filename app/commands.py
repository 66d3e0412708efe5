"""The commands: each reads its arguments, shows progress and prints what it made."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from interp.errors import InputError

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Measure this machine, side by side with what others use.")
app.add_typer(bench, name="bench")

UsageError: Any = typer.BadParameter.__base__
"""Of every wrong argument; typer does not name it."""

Reference = Annotated[
    str, typer.Argument(help="Catalog name, hub id, local folder or .gguf file.")
]
TextFiles = Annotated[
    list[Path] | None,
    typer.Option("--text", help="UTF-8 file; may be repeated. Unset: a shipped text."),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Keep at most this many tokens of each text.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, ...; float32 on a CPU if unset.")
]
Names = Annotated[
    str | None,
    typer.Option(help="Names with commas between. Unset: all. A wrong one lists them."),
]


def run() -> int:
    """Run the command that the arguments name.

    Returns:
        The exit code, unless something was raised.

    Raises:
        InputError: There is no such command, option or value.
    """
    try:
        return app(prog_name="interp", standalone_mode=False) or 0
    except UsageError as error:
        said = error.format_message().strip()
        command = error.ctx.command_path if error.ctx else "interp"
        end = "" if said.endswith((".", "?", ")")) else "."
        raise InputError(f"{said}{end} See {command} --help.") from error
    except typer.Abort as stop:  # typer before 0.16 makes this of Ctrl-C
        raise KeyboardInterrupt from stop


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"interp {version('interp')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Interpretability of attention, at any length, without the N x N map."""


@app.command()
def atlas(
    model: Reference,
    text: TextFiles = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Unset: atlas-MODEL.")
    ] = None,
    max_tokens: MaxTokens = None,
    detectors: Names = None,
    seed: Annotated[int, typer.Option(help="Of random tokens and intervals.")] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Every detector on every head: atlas.csv, atlas.zarr, index.html, run.json.

    Prints the path of the page. An interrupted run goes on with the same command.
    """
    from interp.app.atlas import Request, make
    from interp.app.texts import read_texts
    from interp.probes import resolve

    request = Request(
        model=model,
        texts=read_texts(text),
        out=out or Path(f"atlas-{Path(model).resolve().name.removesuffix('.gguf')}"),
        detectors=tuple(d.name for d in resolve(_split("--detectors", detectors))),
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        command=_command(),
    )
    with _progress() as progress:
        page, already = make(request, progress)
    if already:
        typer.echo("This atlas is complete; nothing was left to do.", err=True)
    typer.echo(page)


@app.command()
def trace(
    model: Reference,
    text: Annotated[Path, typer.Option(help="UTF-8 file.")],
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
    capture = parse_statistics(_split("--statistics", statistics))
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
    only: Annotated[
        str | None,
        typer.Option("--heads", help="Every detector of these, such as L12.H7,L3.H1."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Detector to sort by. Unset: the first.")
    ] = None,
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

    lengths = [_whole(part) for part in _split("--tokens", tokens) or []]
    with _appending(out) as append, _progress() as progress:
        table = tap_table(model, lengths, repeats, threads, progress, _command())
        append(table)
    typer.echo(table)


def _split(option: str, names: str | None) -> list[str] | None:
    """The names that an option was given; None if it was not."""
    if names is None:
        return None
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise InputError(
            f"{option} names nothing: it is {names!r}. Give names with commas between, "
            "or leave it out."
        )
    return found


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise InputError(
            f"--tokens takes whole numbers from 2 on; got {text!r}. Write it as "
            "512,1024."
        )
    return int(text)


def _command() -> str:
    return shlex.join(["interp", *sys.argv[1:]])


@contextmanager
def _appending(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Opens a file before the work whose result it gets; without one drops it."""
    if path is None:
        yield lambda table: None
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            yield file.write
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}. Choose another file with "
            "--out."
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step, on stderr if that is a terminal.

    An error clears the bars, so that its line stands alone.
    """
    screen = Console(stderr=True, highlight=False)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def close() -> None:
            for task in bars.tasks:
                if task.total is None:
                    bars.update(task.id, completed=1, total=1)

        def update(step: str, done: int, total: int) -> None:
            """Without a total the step lasts until the next begins."""
            if step not in tasks:
                close()
                tasks[step] = bars.add_task(step, total=None)
            bars.update(tasks[step], completed=done, total=total or None)

        try:
            yield update
            close()
        except BaseException:
            bars.live.transient = True
            raise
