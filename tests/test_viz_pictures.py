"""Figures as pictures: drawn by a real browser, on paper that is not see-through."""

import asyncio
import base64
import struct

import plotly.graph_objects as go
import plotly.io as pio
import pytest
from kaleido import PageGenerator
from kaleido._kaleido_tab._tab import _KaleidoTab

from interp.errors import InputError
from interp.viz import pictures, theme
from interp.viz.pictures import LINE, SCALE, as_pictures, picture

pytestmark = [pytest.mark.app, pytest.mark.slow]

LINE_FIGURE = go.Figure(go.Scatter(y=[1, 2])).to_dict()


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(pio.renderers, "_default_renderers", [])
    as_pictures(width=400)
    return pio.renderers["picture"]


@pytest.fixture
def hung(monkeypatch):
    """The next browser falls silent somewhere."""

    def hang(where):
        given, own = [], getattr(_KaleidoTab, where)

        async def silent(tab, *values, **options):
            given.append(tab)
            if len(given) == 1:
                await asyncio.sleep(3600)
            return await own(tab, *values, **options)

        monkeypatch.setattr(_KaleidoTab, where, silent)
        return given

    monkeypatch.setattr(pictures, "PATIENCE", 8)
    return hang


def size(renderer, figure):
    picture = base64.b64decode(renderer.to_mimebundle(figure.to_dict())["image/png"])
    return struct.unpack(">II", picture[16:24])


def test_a_figure_is_a_picture_of_the_asked_width_and_stays_as_it_was(shown):
    figure = go.Figure(go.Scatter(y=[1, 2]))
    figure.update_layout(template=theme.template(), height=200)
    before = figure.to_dict()
    assert size(shown, figure) == (400 * SCALE, 200 * SCALE)
    assert figure.to_dict() == before
    assert pio.renderers.default == "picture"


def test_a_title_has_a_line_of_its_own_above_the_legend_of_curves(shown):
    figure = go.Figure(go.Scatter(y=[1, 2]))
    figure.update_layout(template=theme.template(), height=200, title="curves")
    assert size(shown, figure) == (400 * SCALE, (200 + LINE) * SCALE)
    titled = go.Figure(go.Heatmap(z=[[1, 2]]), layout=figure.layout)
    assert size(shown, titled) == (400 * SCALE, 200 * SCALE)


@pytest.mark.parametrize("where", ["navigate", "_calc_fig", "reload"])
def test_a_browser_that_never_answers_is_given_up_for_another(where, hung):
    asked = hung(where)
    assert picture(LINE_FIGURE, "svg", 400, 1).startswith(b"<svg")
    assert len(asked) == 2


def test_where_none_answers_an_error_says_so(monkeypatch, tmp_path):
    silent = tmp_path / "browser"
    silent.write_text("#!/bin/sh\nexec sleep 3600\n")
    silent.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(silent))
    for name, seconds in (("PATIENCE", 1), ("CLOSING", 1)):
        monkeypatch.setattr(pictures, name, seconds)
    with pytest.raises(InputError, match="3 browsers failed, or did not answer"):
        picture(LINE_FIGURE, "png", 400, 1)


def test_a_browser_that_ends_at_once_is_an_error_too(monkeypatch, tmp_path):
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    with pytest.raises(InputError, match="3 browsers failed"):
        picture(LINE_FIGURE, "png", 400, 1)


def test_a_picture_is_drawn_without_the_network(monkeypatch):
    pages = []
    own = PageGenerator.generate_index
    monkeypatch.setattr(
        PageGenerator,
        "generate_index",
        lambda page, *given: pages.append(own(page, *given)) or pages[-1],
    )
    picture(LINE_FIGURE, "png", 400, 1)
    assert "src=" in pages[0]
    assert "://" not in pages[0].replace("file://", "")
