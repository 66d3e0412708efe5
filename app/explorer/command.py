"""`interp app`, as the command line reads it."""

from pathlib import Path
from typing import Annotated

import typer

from interp.app.options import Device
from interp.errors import InputError


def explorer(
    stores: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of `interp atlas`, stores of `interp trace`."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model that reads pasted text.")
    ] = "smollm2-135m",
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 8501,
    memory: Annotated[
        float, typer.Option(min=0.1, help="GiB of models; half as much of results.")
    ] = 8.0,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    device: Device = "auto",
) -> None:
    """The explorer: a page to keep open while thinking, for this machine alone."""
    try:
        from interp.app.explorer.serve import serve
        from interp.app.explorer.server import Settings
    except ModuleNotFoundError as error:
        raise InputError(
            f"The explorer needs {error.name}, which is not installed. Install "
            "interp[app]."
        ) from error
    settings = Settings(tuple(stores or ()), model, device, memory)
    serve(settings, port, browser=browser)
