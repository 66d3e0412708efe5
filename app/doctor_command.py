"""`interp doctor`: what can be reached, of one model or of every family."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from interp.app.options import Device, Dtype, split, typed
from interp.app.progress import progress_bars
from interp.errors import InputError


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="Catalog name, hub id, local folder or .gguf file."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 file; may be repeated. Unset: a shipped text."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Of the text that every door reads.")
    ] = 64,
    families: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model: small random models of these families, with "
            "commas between, or all."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the table of --families.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """What of a model can be reached, by which door, and whether the doors agree.

    The exit code is 1 if one of them does not.
    """
    from interp.app.doctor import diagnose
    from interp.app.families import families_page
    from interp.app.texts import read_texts

    if (model is None) == (families is None):
        raise InputError(
            "Give either a model or --families; got "
            f"{'neither' if model is None else 'both'}."
        )
    if model is not None:
        with progress_bars() as progress:
            views, agrees = diagnose(
                model, read_texts(text), max_tokens, device, dtype, progress
            )
        for view in views:
            Console().print(view)
    else:
        names = split("--families", families) or []
        with progress_bars() as progress:
            page, agrees = families_page(names, progress, typed())
        if out is not None:
            out.write_text(page, encoding="utf-8")
        typer.echo(page if out is None else out)
    if not agrees:
        raise typer.Exit(1)
