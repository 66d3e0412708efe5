"""The atlas as one HTML file that opens anywhere, without a network."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import jinja2
import xarray as xr
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from interp.errors import InputError, StorageError
from interp.viz import atlas as reading
from interp.viz import numbers, sections
from interp.viz.embed import FigureBook, safe_json, script_hash, style_variables
from interp.viz.findings import findings
from interp.viz.tokens import strip_style

TEXTS = 6
"""Texts shown token by token; the others stay in the store."""


def write(atlas: xr.DataTree, path: Path, *, command: str | None = None) -> Path:
    """Write the page of an atlas.

    Args:
        atlas: What `interp.probes.atlas` built; anything missing is said to be.
        path: The file, or an existing folder that gets an `index.html`.
        command: What reproduces the atlas; by default the one that it recorded.

    Returns:
        The file that was written, whole or not at all.

    Raises:
        InputError: Not an atlas.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "index.html"
    page = render(atlas, command=command)
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


def render(atlas: xr.DataTree, *, command: str | None = None) -> str:
    """The page of an atlas, as HTML.

    Raises:
        InputError: Not an atlas.
    """
    if not isinstance(atlas, xr.DataTree):
        raise InputError(
            f"A page is written from an atlas, an xarray.DataTree; got "
            f"{type(atlas).__name__}. Pass what interp.probes.atlas returned."
        )
    environment = _environment()
    book = FigureBook()
    texts = list(reading.texts(atlas))
    plotly, script = get_plotlyjs(), _source(environment, "script.html")
    parts = {
        "facts": sections.facts(atlas),
        "findings": findings(atlas),
        "detectors": [
            sections.detector_card(atlas, name, book)
            for name in reading.detectors(atlas)
            if name != reading.SPLIT
        ],
        "rankings": list(sections.rankings(atlas)),
        "sinks": [sections.sinks(*text, book) for text in texts[:TEXTS]],
        "activations": [sections.activations(*text, book) for text in texts[:TEXTS]],
        "span": sections.span(atlas, book),
        "skipped": reading.skipped(atlas),
        "codes": sections.codes(atlas),
        "provenance": sections.provenance(atlas, command),
        "more_texts": len(texts[TEXTS:]),
    }
    return environment.get_template("page.html").render(
        **parts,
        why=lambda *names: reading.why_absent(atlas, *names),
        variables=style_variables(),
        strip_style=Markup(strip_style()),
        data=book.json(),
        plotly=Markup(plotly),
        script=Markup(script),
        policy=Markup(" ").join(map(Markup, map(script_hash, (plotly, script)))),
    )


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
