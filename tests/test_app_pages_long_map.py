"""The long map's page: from the overview to one weight, by the address and by boxes."""

import json

import numpy as np
import pytest
import torch
from test_app_explorer import figures, opened, problems, shown, waited
from tiny_models import tiny

import interp
from interp.app.explorer import server as servers
from interp.app.explorer.server import Settings, configure
from interp.app.pages import long_map
from interp.capture import Capture
from interp.errors import InputError

pytestmark = pytest.mark.app
SHAPE = (24, 24)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "tiny"
    ids = torch.randint(3, 90, (1, 24), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    interp.trace(tiny("llama")[0], inputs, capture=Capture(vectors=True), out=path)
    return path


@pytest.fixture(autouse=True)
def _own_server(traced):
    configure(Settings((traced,), model="no-such-model"))
    yield
    servers._server = None


def weights(traced):
    trace = interp.open_trace(traced)
    return interp.long_map_of(trace, layer=1, head=2).window()["block_mean"].values


def test_the_address_zooms_to_one_weight_which_is_exact_and_out_again(traced):
    app = waited(opened("long_map", head="L1.H2", zoom="9-9,4-4"))
    exact = weights(traced)[9, 4]
    assert f"with weight {long_map.number(float(exact), 7)}." in shown(app)
    next(b for b in app.main.button if b.label == "Zoom out").click().run()
    assert app.text_input(key="zoom").value == "8-9,3-4"
    app.text_input(key="zoom").set_value("5-2,1-3").run()
    assert "5-2,1-3" in " ".join(problems(app))
    next(b for b in app.main.button if b.label == "Whole map").click().run()
    assert "Queries 0 to 23, keys 0 to 23; every weight." in shown(app)
    [spec] = figures(app).values()
    assert json.loads(spec)["layout"]["title"]["text"] == "L1.H2: single weights"


def test_a_store_without_vectors_says_what_to_do(tmp_path):
    ids = {"input_ids": torch.arange(5, 20)[None]}
    interp.trace(tiny("llama")[0], ids, out=tmp_path / "bare")
    configure(Settings((tmp_path / "bare",), model="no-such-model"))
    app = waited(opened("long_map", head="L1.H2"))
    assert "vectors=True" in " ".join(problems(app))


def test_windows_are_read_and_widened_within_the_map():
    assert long_map.read_zoom(" ", SHAPE) == (0, 24, 0, 24)
    assert long_map.read_zoom("3-5, 0-9", SHAPE) == (3, 6, 0, 10)
    assert long_map.wider((0, 4, 22, 24), SHAPE) == (0, 8, 20, 24)
    assert long_map.wider((10, 30, 0, 24), (200, 24)) == (0, 40, 0, 24)
    for wrong, told in (("0-24,0-3", "0 to 23"), ("all", "'all'"), ("5-2,1-3", "5-2")):
        with pytest.raises(InputError, match=told):
            long_map.read_zoom(wrong, SHAPE)


def test_a_box_zooms_to_the_cells_that_it_touches(monkeypatch):
    state: dict[str, str] = {}
    monkeypatch.setattr(long_map.st, "session_state", state)
    box = {"x": [9.6, 3.2], "y": [-2.0, 99.0]}
    long_map._boxed({"box": [box]}, SHAPE)
    assert state["zoom"] == "0-23,3-10"
    assert np.diff(long_map.read_zoom(state["zoom"], SHAPE)[2:]) == [8]
