"""Jobs as a page sees them: start, progress, cancel, result."""

from typing import Any

import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from interp.app.explorer.jobs import Job, Work
from interp.app.explorer.page import note, problem
from interp.app.explorer.server import server

EVERY = 0.6
"""Seconds between looks at a job."""


def result(key: str, title: str, work: Work, *, button: str | None = None) -> Any:
    """The result of long work, or None while there is none.

    Meanwhile the page shows progress and a way to cancel; it runs again by itself
    when the job ends. Nothing else of the page waits.

    Args:
        key: Everything that decides the result; equal keys share one run.
        title: What is done, as plain text.
        work: Called with `tell(step, done, total)` in another thread. It must call
            Streamlit never, and `tell` often: there it ends when it is cancelled.
        button: Label of the button that starts it; None starts it at once.
    """
    found = server().results.get(key)
    if found is not None:
        return found
    board, who = server().jobs, session()
    job = board.find(key, who)
    if job is None and button is None and f"gave up {key}" not in st.session_state:
        job = board.start(key, title, work, who)
    if job is not None and (job.is_active or job.state == "done"):
        _watch(key)
        return None
    if job is not None and job.state == "failed":
        problem(job.message)
    if job is None and f"gave up {key}" in st.session_state:
        note(f"Cancelled: {title}.")
    label = button if job is None and button else "Run again"

    def start() -> None:
        st.session_state.pop(f"gave up {key}", None)
        board.start(key, title, work, who)

    st.button(label, key=f"start {key}", on_click=start, type="primary")
    return None


def session() -> str:
    """The name of this browser tab's session."""
    context = get_script_run_ctx()
    return context.session_id if context is not None else "no session"


@st.fragment(run_every=EVERY)
def _watch(key: str) -> None:
    """Progress of a job; the whole page runs again once it has ended."""
    job = server().jobs.find(key, session())
    if job is None or not job.is_active:
        st.rerun()
    assert job is not None
    share = min(job.done / job.total, 1.0) if job.total else 0.0
    left, right = st.columns([6, 1], vertical_alignment="center")
    with left:
        st.progress(share, text=_said(job))
    right.button("Cancel", key=f"cancel {key}", on_click=_cancel, args=(key,))


def _cancel(key: str) -> None:
    st.session_state[f"gave up {key}"] = True
    server().jobs.cancel(key, session(), _living(key))


def _living(key: str) -> set[str]:
    """Sessions that wait for a job and are still open in a browser."""
    job = server().jobs.find(key, session())
    waiting = job.wanted_by if job is not None else set()
    if not exists():
        return set(waiting)
    return {each for each in waiting if get_instance().is_active_session(each)}


def _said(job: Job) -> str:
    """Plain words: the title is ours, steps hold names of texts."""
    count = f", {job.done:,} of {job.total:,}" if job.total else ""
    return _plain(f"{job.title}: {job.step}{count}")


def _plain(text: str) -> str:
    """The text as Markdown that shows it letter by letter."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:&" else c for c in text)
