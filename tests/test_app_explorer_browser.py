"""The explorer in a real browser: what all pages share."""

import shutil
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from explorer_browser import (
    choose,
    click,
    downloaded,
    explorer,
    page,
    settled,
    table,
)
from hand_atlas import hand_atlas
from hostile import HOSTILE, trace_of_hostile_tokens, with_tokens

import interp
from interp.app.folder import save
from interp.app.pages import PAGES
from interp.probes import detect
from interp.viz.tokens import visible

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.real]

TOKENS = 48
LIVE = f"source=run+a+model+here&tokens={TOKENS}"
PATHS = [page.path if page is not PAGES[0] else "" for page in PAGES]
CONTROLS = (
    *("Overview", "Source", "Text", "Head", "Colors", "Queries and keys", "Zoom out"),
    *("Box Select", "CSV", "Python"),
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, lighthouse):
    folder = tmp_path_factory.mktemp("stores")
    shutil.copytree(lighthouse, folder / "lighthouse")
    trace_of_hostile_tokens(folder / "hostile")
    tree = with_tokens(hand_atlas(layers=6, heads=4, kv_heads=2, tokens=80), HOSTILE)
    for name in ("atlas", "gone", "damaged"):
        save(tree, folder / name / "atlas.zarr")
    return folder


@pytest.fixture(scope="module")
def address(stores):
    names = ("lighthouse", "hostile", "atlas", "gone", "damaged")
    log = stores / "log.txt"
    with explorer(*(stores / name for name in names), log=log) as found:
        yield found
    assert "Traceback" not in log.read_text()


def test_a_click_on_a_map_chooses_the_head_of_every_page(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/?{LIVE}")
        settled(found, "smollm2-135m on lighthouse.txt")
        click(found, 0, 7, 3)
        found.wait_for_url("**head=L7.H3**")
        found.get_by_role("link", name="Head").click()
        settled(found, "Head L7.H3")
        found.reload()
        settled(found, "Head L7.H3")
        assert "head=L7.H3" in found.url
        assert f"tokens={TOKENS}" in found.url
        assert not found.faults


def test_downloads_hold_what_is_shown(chromium, address, stores, monkeypatch):
    sinks = detect(interp.open_trace(stores / "lighthouse"), ["sinks"])["sinks"]
    with page(chromium, address) as found:
        found.goto(f"{address}/?source=lighthouse")
        settled(found, "The strongest heads")
        rows = table(found)
        assert len(rows) == sinks.size
        for row in rows:
            place = {"layer": int(row["layer"]), "head": int(row["head"])}
            assert float(row["sinks"]) == float(sinks.sel(place))
        assert b"<svg" in downloaded(found, "SVG")[:200]
        assert downloaded(found, "PNG")[:4] == b"\x89PNG"
        shown: list[Any] = []
        monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
        monkeypatch.chdir(stores)
        exec(downloaded(found, "Python"), {})
        drawn = sinks.transpose("head", "layer").values.astype(np.float32)
        assert (shown[0].data[0].z == drawn).all()
        assert not found.faults


def test_a_run_can_be_cancelled_and_run_again(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/?source=run+a+model+here&tokens=1500")
        found.get_by_role("button", name="Cancel").click()
        settled(found, "Cancelled:")
        found.get_by_role("button", name="Run again").wait_for()
        assert not found.faults


@pytest.mark.parametrize("path", PATHS)
def test_hostile_tokens_are_text_on_every_page(chromium, address, path):
    with page(chromium, address) as found:
        if path == "crossattn":
            compared_hostile_text(found, address)
        else:
            way = "with=another+model+or+store&second=atlas"
            found.goto(f"{address}/{path}?source=hostile&{way}")
            found.locator(".js-plotly-plot").last.wait_for()
            settled(found, "Source")
        assert found.evaluate("window.hacked") is None
        if path == "tokens":
            shown = found.locator(".text button").all_text_contents()
            assert shown == [visible(token, 40) for token in HOSTILE]
        if path == "long_map":
            ticks = found.locator(".ytick text").all_text_contents()
            assert ticks == [visible(token, 12) for token in HOSTILE]
        assert not found.faults


def compared_hostile_text(found, address: str) -> None:
    found.goto(f"{address}/crossattn?model=smollm2-135m&written=2")
    found.get_by_role("button", name="Paste a text").click()
    found.get_by_placeholder("Any text").fill(" ".join(HOSTILE[:6]))
    found.get_by_role("button", name="Read this text").click()
    found.wait_for_url("**text=**")
    found.get_by_role("button", name="Compare attention with saliency").click()
    settled(found, "How far they agree")
    found.locator(".js-plotly-plot").last.wait_for()


def test_a_store_that_is_deleted_or_damaged_is_told_beside_the_rest(
    chromium, address, stores
):
    shutil.rmtree(stores / "gone")
    for header in (stores / "damaged").rglob("zarr.json"):
        header.write_text("{")
    with page(chromium, address) as found:
        found.goto(f"{address}/?source=gone")
        settled(found, "is not there (any more)")
        choose(found, "Source", "damaged")
        settled(found, "is damaged")
        choose(found, "Source", "atlas")
        settled(found, "80 tokens, 6 layers of 4 heads")
        found.locator(".js-plotly-plot").nth(5).wait_for()
        assert found.get_by_role("alert").count() == 0
        assert not found.faults


def test_a_model_that_does_not_load_is_told_beside_the_rest(chromium, stores, tmp_path):
    missing = tmp_path / "nothing"
    options = (stores / "atlas", "--model", missing)
    with (
        explorer(*options, log=tmp_path / "log.txt") as address,
        page(chromium, address) as found,
    ):
        found.goto(f"{address}/?source=run+a+model+here")
        settled(found, "there is no such file or folder")
        found.get_by_role("button", name="Run again").wait_for()
        choose(found, "Source", "atlas")
        settled(found, "80 tokens, 6 layers of 4 heads")
        assert not found.faults


def test_every_control_is_reached_and_used_with_keys_alone(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/long_map?source=lighthouse&head=L18.H6")
        settled(found, "Queries 0 to 47")
        found.locator(".js-plotly-plot").wait_for()
        reached = list(tabbed(found))
        for name in CONTROLS:
            assert any(name in each for each in reached), f"{name}: {reached}"
        box = found.get_by_label("Queries and keys", exact=True)
        box.focus()
        found.keyboard.type("20-29,0-9")
        found.keyboard.press("Enter")
        settled(found, "Queries 20 to 29, keys 0 to 9; every weight.")
        found.get_by_role("combobox", name="Colors").focus()
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            found.keyboard.press(key)
        found.wait_for_url("**scale=rank**")
        assert not found.faults


def tabbed(found):
    """What each press of Tab reaches, until the page begins again."""
    name = "e => e.ariaLabel || e.dataset.title || e.innerText || ''"
    for _ in range(200):
        found.keyboard.press("Tab")
        if found.evaluate("document.activeElement === document.body"):
            return
        yield found.evaluate_handle("document.activeElement").evaluate(name)
    raise AssertionError("Tab never comes to the end of the page")


@pytest.mark.parametrize("path", PATHS)
def test_every_page_fits_a_small_window_in_both_modes(chromium, address, path):
    """1280 x 720, and the same at 150 %."""
    for width, height, dark in ((1280, 720, False), (853, 480, True)):
        with page(chromium, address, dark) as found:
            found.set_viewport_size({"width": width, "height": height})
            found.goto(f"{address}/{path}?source=lighthouse")
            if path != "crossattn":
                found.locator(".js-plotly-plot").last.wait_for()
            settled(found, "Upload a store")
            assert found.evaluate(TOO_WIDE) == []
            charts = found.evaluate(WIDTHS)
            assert min(charts, default=999) > 200
            assert not found.faults


TOO_WIDE = """() => [...document.querySelectorAll(
    ".stMain, .stMain button, .stMain .stButtonGroup > div, .stMain .interp-note")]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && !e.closest(".js-plotly-plot"))
    .map(e => e.innerText)"""

WIDTHS = """() => [...document.querySelectorAll(".js-plotly-plot")]
    .map(plot => plot._fullLayout.width)"""
