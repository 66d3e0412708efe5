"""A real explorer and a real browser, for the tests that are marked `app`."""

import csv
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 240_000
"""Milliseconds until a page has to show what it should; tests tell no time."""


def chromium() -> str | None:
    """The browser's path, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def require_browser() -> str:
    """The browser; a test is skipped without, but never in CI."""
    import pytest

    found = chromium()
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("no chromium on the path; apt-get install -y chromium brings it")
    assert found is not None, "CI needs chromium: apt-get install -y chromium"
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def explorer(*arguments: str | Path, log: Path) -> Iterator[str]:
    """`interp app` as a user starts it, until the block ends; its address."""
    with explorer_process(*arguments, log=log) as (address, _):
        yield address


@contextmanager
def explorer_process(
    *arguments: str | Path, log: Path
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The same, with its process."""
    port = free_port()
    start = "from interp.app.cli import main; main()"
    command = [sys.executable, "-c", start, "app", *map(str, arguments)]
    command += ["--no-browser", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        wait_for(f"{address}/_stcore/health", process, log)
        yield address, process
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"the explorer ended: {log.read_text()}")


@contextmanager
def browser() -> Iterator:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=require_browser(), args=["--no-sandbox"]
        )
        try:
            yield started
        finally:
            started.close()


@contextmanager
def page(started, address: str, dark: bool = False, **options) -> Iterator:
    """A page that keeps what its console said and what it asked of the network.

    `faults` holds every console error, uncaught exception, and request to any other
    server. Of a link to a page below the root, Streamlit first asks which part of it
    is its own root, and gets a 404 for each wrong guess: these are no faults.
    """
    context = started.new_context(
        viewport={"width": 1280, "height": 720},
        color_scheme="dark" if dark else "light",
        accept_downloads=True,
        **options,
    )
    context.set_default_timeout(PATIENCE)
    found = context.new_page()
    faults: list[str] = []

    def said(message) -> None:
        guess = "_stcore" in message.location.get("url", "") and "404" in message.text
        if message.type == "error" and not guess:
            faults.append(f"{message.text} {message.location}")

    found.on("console", said)
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "data:", "blob:", "ws:"))
            else faults.append(request.url)
        ),
    )
    found.faults = faults
    try:
        yield found
    finally:
        context.close()


def pixel(found, chart: int, x: float, y: float) -> tuple[float, float]:
    """Where plotly draws a point of a chart, once the chart is in the window."""
    at = """(plot, [x, y]) => {
        plot.scrollIntoView({block: "center"})
        const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect()
        return [box.left + xaxis._offset + xaxis.l2p(x),
                box.top + yaxis._offset + yaxis.l2p(y)]
    }"""
    return tuple(found.locator(".js-plotly-plot").nth(chart).evaluate(at, [x, y]))


def click(found, chart: int, x: float, y: float) -> None:
    """Click a point of a chart."""
    found.mouse.click(*pixel(found, chart, x, y))


def drag(found, chart: int, *points: tuple[float, float]) -> None:
    """Draw a box or a lasso through points of a chart."""
    first, *others = [pixel(found, chart, *each) for each in points]
    found.mouse.move(*first)
    found.mouse.down()
    for each in others:
        found.mouse.move(*each, steps=6)
    found.mouse.up()


def downloaded(found, label: str, index: int = 0) -> bytes:
    """The file behind a button, the first unless another is meant.

    Tables have a button of Streamlit's own, "Download as CSV", which is not meant.
    """
    name = re.compile(rf"^(download )?{label}$")
    with found.expect_download() as waiting:
        found.get_by_role("button", name=name).nth(index).click()
    return waiting.value.path().read_bytes()


def table(found, index: int = 0) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    text = downloaded(found, "CSV", index).decode()
    return list(csv.DictReader(io.StringIO(text)))


def choose(found, label: str, option: str) -> None:
    """Choose an option of a box by keys."""
    box = found.get_by_role("combobox", name=label, exact=True)
    box.click()
    box.fill(option)
    found.get_by_role("option", name=option, exact=True).first.wait_for()
    box.press("Enter")


def settled(found, text: str) -> None:
    """Wait until the page shows a text, all is drawn, and no job is waited for."""
    found.get_by_text(text).first.wait_for()
    found.wait_for_function(
        "() => document.querySelector('.stApp')"
        ".getAttribute('data-test-script-state') === 'notRunning'"
        " && !document.querySelector('[data-testid=stSkeleton]')"
        " && !document.querySelector('[data-testid=stProgress]')"
    )
