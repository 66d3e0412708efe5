"""Figures as pictures: drawn by a real browser, on paper that is not see-through."""

import base64
import struct

import plotly.graph_objects as go
import plotly.io as pio
import pytest

from interp.viz import theme
from interp.viz.pictures import SCALE, as_pictures

pytestmark = [pytest.mark.app, pytest.mark.slow]


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(pio.renderers, "_default_renderers", [])
    as_pictures(width=400)
    yield pio.renderers["picture"]
    import kaleido

    kaleido.stop_sync_server(silence_warnings=True)


def test_a_figure_is_a_picture_of_the_asked_width_and_stays_as_it_was(shown):
    figure = go.Figure(go.Scatter(y=[1, 2]))
    figure.update_layout(template=theme.template(), height=200)
    before = figure.to_dict()
    picture = base64.b64decode(shown.to_mimebundle(figure.to_dict())["image/png"])
    assert struct.unpack(">II", picture[16:24]) == (400 * SCALE, 200 * SCALE)
    assert figure.to_dict() == before
    assert pio.renderers.default == "picture"
