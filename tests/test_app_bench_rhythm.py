"""What a rhythm costs: each route measured, in this process and on a tiny model."""

import json

import pytest
from command_line import save

from interp.app.bench import rhythm


@pytest.mark.parametrize("route", rhythm.ROUTES)
def test_every_route_tells_its_cost(route, tmp_path, capsys):
    rhythm._run(str(save(tmp_path, "llama")), route, 48, 1, 1)
    cell = json.loads(capsys.readouterr().out)

    assert cell.keys() == {"wall", "cpu", "extra"}
    assert cell["wall"] > 0


def test_the_table_is_asked_for_with_all_routes(monkeypatch):
    asked = []
    monkeypatch.setattr(rhythm, "apart_table", lambda *given: asked.append(given) or "")
    rhythm.rhythm_table("m", [64], 1, 2, print, "interp bench rhythm")

    ((title, module, routes, *_),) = asked
    assert title == "Rhythm"
    assert module == "interp.app.bench.rhythm"
    assert set(routes) == {"untraced", "rhythm", "eager"}
