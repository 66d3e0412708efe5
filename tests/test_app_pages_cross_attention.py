"""The page of attention against saliency, on comparisons made by hand."""

import pytest
from hand_crossattn import hand_crossattn
from test_app_explorer import figures, opened, problems, shown

from interp.app.explorer import server as servers
from interp.app.explorer.server import Settings, configure
from interp.app.pages import cross_attention

pytestmark = pytest.mark.app
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _own_server():
    configure(Settings())
    yield
    servers._server = None


@pytest.mark.parametrize("kind", ["speech", "text", "decoder"])
def test_a_comparison_is_shown_and_its_tokens_are_text(kind, monkeypatch):
    tree = hand_crossattn(kind, (" the", HOSTILE))
    monkeypatch.setattr(cross_attention, "result", lambda *_, **__: tree)
    app = opened("crossattn")
    assert problems(app) == []
    assert len(figures(app)) == 3
    assert HOSTILE not in shown(app)


def test_no_method_is_told(monkeypatch):
    monkeypatch.setattr(cross_attention, "result", lambda *_, **__: None)
    app = opened("crossattn")
    app.get("button_group")[0].set_value([]).run()
    assert "No method is chosen" in " ".join(problems(app))
