"""What tracing costs a text that a model writes: every row, whatever the times."""

import json
import shutil

import pytest
from command_line import made, save, says
from test_app_bench import rows_of

from interp.app.bench import generation

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


@pytest.mark.parametrize("route", generation.ROUTES)
def test_both_routes_are_measured(route, llama, capsys, monkeypatch):
    monkeypatch.setattr(generation, "PROMPT", 6)
    generation._run(str(llama), route, 5, 1, 1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cpu"] > 0


@pytest.mark.slow
def test_the_table_has_a_row_for_both(llama, tmp_path):
    model = shutil.copytree(llama, tmp_path / "llama")
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = 128  # room for the prompt
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    options = ["--tokens", "8", "--repeats", 1, "--threads", 1]
    table = made("bench", "generation", model, *options)
    assert [row[1] for row in rows_of(table)] == list(generation.ROUTES.values())
    assert says(table, "Generation after 64 tokens", "interp bench generation")
