"""What a page is, and how its sections fail without the rest."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import streamlit as st
from markupsafe import escape

from interp.app.explorer.jobs import OUR_MISTAKE
from interp.errors import InterpError


@dataclass(frozen=True)
class Page:
    """One page: its file ends with `PAGE = Page(...)`.

    Attributes:
        title: In the navigation.
        path: In the address.
        question: What it answers, in one sentence.
        render: Draws it, from the reading.
        alone: Whether it takes no reading, but asks for what it needs itself.
    """

    title: str
    path: str
    question: str
    render: Callable[..., None]
    alone: bool = False


@contextmanager
def section(title: str = "", level: int = 3) -> Iterator[None]:
    """A part of the page; what fails in it is told in its place.

    Args:
        title: Plain text of its heading; none if empty.
        level: Of the heading.
    """
    if title:
        st.html(f"<h{level}>{escape(title)}</h{level}>")
    try:
        yield
    except InterpError as error:
        problem(str(error))
    except Exception:
        logging.getLogger(__name__).exception("a section of a page failed")
        problem(OUR_MISTAKE)


def problem(message: str) -> None:
    """What went wrong and what to do, as text that cannot act."""
    _notice("problem", message)


def note(message: str) -> None:
    """A remark, as text that cannot act."""
    _notice("note", message)


def _notice(kind: str, message: str) -> None:
    role = "alert" if kind == "problem" else "note"
    st.html(f'<div class="interp-{kind}" role="{role}">{escape(message)}</div>')
