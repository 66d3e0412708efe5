"""Figures as pictures: drawn by a real browser, on paper that is not see-through."""

import asyncio
import base64
import struct

import kaleido
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from kaleido import PageGenerator

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
    """As many of the next browsers as are asked for never answer."""
    given, own = [], kaleido.Kaleido.open

    def hang(count):
        async def opened(browser):
            given.append(browser)
            await (asyncio.sleep(3600) if len(given) <= count else own(browser))

        monkeypatch.setattr(kaleido.Kaleido, "open", opened)
        return given

    monkeypatch.setattr(pictures, "PATIENCE", 0.2)
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


def test_a_browser_that_never_answers_is_given_up_for_another(hung, monkeypatch):
    browsers = hung(2)
    clock = asyncio.timeout
    patience = iter((0.2, 0.2, 60))
    monkeypatch.setattr(asyncio, "timeout", lambda _: clock(next(patience)))
    assert picture(LINE_FIGURE, "svg", 400, 1).startswith(b"<svg")
    assert len(browsers) == 3


def test_where_none_answers_an_error_says_so(hung):
    browsers = hung(3)
    with pytest.raises(InputError, match="3 browsers did not answer"):
        picture(LINE_FIGURE, "png", 400, 1)
    assert len(browsers) == 3


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
