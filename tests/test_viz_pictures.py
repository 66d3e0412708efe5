"""Figures as pictures: drawn by a real browser, on paper that is not see-through."""

import base64
import struct

import plotly.graph_objects as go
import plotly.io as pio
import pytest

from interp.viz import theme
from interp.viz.pictures import LINE, SCALE, as_pictures

pytestmark = [pytest.mark.app, pytest.mark.slow]


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(pio.renderers, "_default_renderers", [])
    as_pictures(width=400)
    yield pio.renderers["picture"]
    import kaleido

    kaleido.stop_sync_server(silence_warnings=True)


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
