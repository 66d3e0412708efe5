"""What all pages share: their frame, filters and policy, and how they are written."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from interp.errors import StorageError
from interp.viz import numbers
from interp.viz.embed import FigureBook, safe_json, script_hash, style_variables


def compose(template: str, book: FigureBook, **parts: Any) -> str:
    """A page as HTML that needs no network.

    Args:
        template: Name of the template, which extends the frame.
        book: The page's figures.
        parts: What the template shows.
    """
    environment = _environment()
    plotly, script = get_plotlyjs(), _source(environment, "script.html")
    return environment.get_template(template).render(
        **parts,
        variables=style_variables(),
        data=book.json(),
        plotly=Markup(plotly),
        script=Markup(script),
        policy=Markup(" ").join(map(Markup, map(script_hash, (plotly, script)))),
    )


def write_page(page: str, path: Path) -> Path:
    """Write a page, whole or not at all.

    Args:
        page: As `compose` made it.
        path: The file, or an existing folder that gets an `index.html`.

    Returns:
        The file that was written.

    Raises:
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "index.html"
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            file.write(page)
        part.chmod(0o644)
        os.replace(part, path)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise StorageError(
            f"The page was to be written to {path}; the system says: "
            f"{error.strerror or error}. Choose a folder that can be written to."
        ) from error
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("interp.viz", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": numbers.number,
        "percent": numbers.percent,
        "plural": numbers.plural,
        "safe_json": safe_json,
    }
    return environment


def _source(environment: jinja2.Environment, name: str) -> str:
    """A template's text as it stands, for the part that holds no expressions."""
    source, _, _ = jinja2.PackageLoader("interp.viz", "templates").get_source(
        environment, name
    )
    return source.strip()
