"""The commands: each reads its arguments, shows progress and prints what it made."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from interp.app.bench.commands import bench
from interp.app.crossattn_command import crossattn
from interp.app.doctor_command import doctor
from interp.app.explorer.command import explorer
from interp.app.options import (
    Device,
    Dtype,
    HeadNames,
    HeadsFile,
    MaxTokens,
    Names,
    Reference,
    Strongest,
    folder_for,
    split,
    typed,
)
from interp.app.progress import make_shown, progress_bars
from interp.app.report_command import report
from interp.app.rhythm_command import rhythm
from interp.errors import InputError

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench, name="bench")
app.command("app")(explorer)
app.command()(rhythm)
app.command()(crossattn)
app.command()(report)
app.command()(doctor)

UsageError: Any = typer.BadParameter.__base__
"""Of every wrong argument; typer does not name it."""

TextFiles = Annotated[
    list[Path] | None,
    typer.Option("--text", help="UTF-8 file; may be repeated. Unset: a shipped text."),
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
    detectors: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between, experiments too. Unset: all that cost "
            "little. A wrong one lists them."
        ),
    ] = None,
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
        out=out or folder_for("atlas", model),
        detectors=tuple(d.name for d in resolve(split("--detectors", detectors))),
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        command=typed(),
    )
    make_shown("atlas", make, request)


@app.command()
def trace(
    model: Reference,
    text: Annotated[Path, typer.Option(help="UTF-8 file.")],
    out: Annotated[Path, typer.Option(help="Zarr store to write or go on with.")],
    statistics: Names = None,
    max_tokens: MaxTokens = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Let the model go on for so many, and trace both."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Statistics of every head on one text, into a Zarr store."""
    import interp
    from interp.app.texts import parse_statistics, read_texts
    from interp.app.writing import write_and_trace

    if new_tokens is not None and max_tokens is not None:
        raise InputError(
            f"--max-tokens {max_tokens} cuts a text that --new-tokens {new_tokens} is "
            "to continue. Leave one of them out."
        )

    [(name, content)] = read_texts([text]).items()
    capture = parse_statistics(split("--statistics", statistics))
    with progress_bars() as progress:
        loaded = interp.load(
            model,
            device=device,
            dtype=dtype,
            progress=lambda step: progress(step, 0, 0),
        )
        if new_tokens is not None:
            asked = content, new_tokens, capture, out, name, progress
            write_and_trace(loaded, *asked)
        else:
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
def ablate(
    model: Reference,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Unset: ablate-MODEL.")
    ] = None,
    heads: HeadNames = None,
    heads_file: HeadsFile = None,
    top: Strongest = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Take whole KV groups.")
    ] = False,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="zero (unset), mean, resample, uniform, self; repeatable."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="nll (unset), repeated, passkey, nato, needle, key_value, "
            "choice:FILE, problems:FILE, or {task='nato', lengths=[512]}; repeatable."
        ),
    ] = None,
    controls: Annotated[
        int | None,
        typer.Option(min=0, help="Random controls: 20 or more, or 0. Unset: 20."),
    ] = None,
    text: TextFiles = None,
    max_tokens: MaxTokens = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of controls, random tokens and intervals.")
    ] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """What a model loses without some heads: ablation.csv, effects.zarr, index.html.

    Beside the heads, random ones are ablated. Prints the path of the page. An
    interrupted run goes on with the same command.
    """
    from interp.app.ablate import Request, make, read_modes
    from interp.app.heads import read_heads
    from interp.app.texts import read_texts

    request = Request(
        model=model,
        heads=read_heads(split("--heads", heads), heads_file, top),
        out=out or folder_for("ablate", model),
        texts=read_texts(text),
        tasks=tuple(task or ["nll"]),
        modes=read_modes(mode or ["zero"]),
        groups=groups,
        n_controls=controls,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        command=typed(),
    )
    make_shown("ablation", make, request)


@app.command()
def influence(
    model: Reference,
    corpus: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, a text file with empty lines between texts, or a folder "
            "of .txt files."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. Unset: influence-CORPUS."),
    ] = None,
    heads: HeadNames = None,
    heads_file: HeadsFile = None,
    top: Strongest = None,
    text_field: Annotated[
        str, typer.Option(help="Field of a JSON line that holds the text.")
    ] = "text",
    domain_field: Annotated[
        str | None,
        typer.Option(help="Field that holds its domain. Unset: domain, where it is."),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="Draws of random heads beside the heads.")
    ] = 3,
    keep: Annotated[
        str, typer.Option(help="Share of each domain that is marked as kept.")
    ] = "20%",
    window: Annotated[
        int, typer.Option(min=4, help="Tokens read at once; longer texts are cut.")
    ] = 2048,
    max_tokens: MaxTokens = None,
    seed: Annotated[int, typer.Option(min=0, help="Of controls and intervals.")] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Texts by how much they hang on some heads: influence.csv, kept.jsonl, run.json.

    The heads look everywhere alike, and each text's loss rises; texts are ranked within
    their domain. Prints the path of the table. An interrupted run goes on with the same
    command.
    """
    from interp.app.corpus import read_corpus
    from interp.app.heads import read_heads
    from interp.app.influence import Request, make, read_share

    request = Request(
        model=model,
        corpus=corpus.name,
        entries=read_corpus(corpus, text_field, domain_field),
        heads=read_heads(split("--heads", heads), heads_file, top),
        out=out or Path(f"influence-{corpus.resolve().stem}"),
        controls=controls,
        keep=read_share("--keep", keep),
        window=window,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        command=typed(),
    )
    make_shown("table", make, request)


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
