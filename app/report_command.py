"""`interp report`: what a TOML file asks for."""

from pathlib import Path
from typing import Annotated

import typer

from interp.app.options import Device
from interp.app.progress import progress_bars
from interp.errors import InputError


def report(
    study: Annotated[
        Path,
        typer.Argument(help="TOML file: models, heads and tasks; or published claims."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Unset: study-FILE.")
    ] = None,
    device: Device = "auto",
) -> None:
    """A scripted study: many ablations side by side, or published claims again.

    Prints the path of the page: index.html beside study.csv, or replications.md beside
    replications.csv. Models that fail are told of at the end; the others are finished.
    An interrupted run goes on with the same command.
    """
    from interp.app import replications
    from interp.app.study import make, read_study
    from interp.app.study_file import StudyFile

    file, folder = StudyFile.read(study), out or Path(f"study-{study.stem}")
    failed = None
    with progress_bars() as progress:
        if replications.CLAIM in file.said:
            asked = replications.read_replications(file)
            page = replications.make(asked, folder, device, progress)
        else:
            page, failed = make(read_study(file), folder, device, progress)
    typer.echo(page)
    if failed:
        raise InputError(failed)
