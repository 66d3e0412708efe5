"""The atlas as one HTML file that opens anywhere, without a network."""

from pathlib import Path

import xarray as xr
from markupsafe import Markup

from interp.errors import InputError
from interp.viz import atlas as reading
from interp.viz import sections
from interp.viz.embed import FigureBook
from interp.viz.findings import findings
from interp.viz.page import compose, write_page
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
    return write_page(render(atlas, command=command), path)


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
    book = FigureBook()
    texts = list(reading.texts(atlas))
    return compose(
        "page.html",
        book,
        facts=sections.facts(atlas),
        findings=findings(atlas),
        detectors=[
            sections.detector_card(atlas, name, book)
            for name in reading.detectors(atlas)
            if name != reading.SPLIT
        ],
        rankings=list(sections.rankings(atlas)),
        agreement=sections.agreement(atlas, book),
        sinks=[sections.sinks(*text, book) for text in texts[:TEXTS]],
        activations=[sections.activations(*text, book) for text in texts[:TEXTS]],
        writers=sections.writers(atlas),
        span=sections.span(atlas, book),
        skipped=reading.skipped(atlas),
        codes=sections.codes(atlas),
        provenance=sections.provenance(atlas, command),
        more_texts=len(texts[TEXTS:]),
        why=lambda *names: reading.why_absent(atlas, *names),
        strip_style=Markup(strip_style()),
    )
