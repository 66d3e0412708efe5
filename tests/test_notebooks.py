"""The notebooks as they are committed: whole, run in order, and of no machine."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"/(?:home|root|tmp|work|usr|var|Users|opt)/|[A-Z]:\\\\")
LARGEST = 600_000


def read(path):
    return json.loads(path.read_text("utf-8"))


def cells(path, kind="code"):
    return [each for each in read(path)["cells"] if each["cell_type"] == kind]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_the_page_of_notebooks_names_every_one_and_no_other():
    page = (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    named = set(re.findall(r"(\w+\.ipynb)", page))
    assert named == {path.name for path in NOTEBOOKS}


@each_notebook
def test_every_cell_parses_and_was_run_in_order(path):
    code = cells(path)
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert [cell["execution_count"] for cell in code] == [
        number + 1 for number in range(len(code))
    ]


@each_notebook
def test_outputs_are_there_and_hold_no_error(path):
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]


@each_notebook
def test_nothing_tells_of_the_machine(path):
    text = "".join(
        line
        for line in path.read_text("utf-8").splitlines(keepends=True)
        if '"image/png"' not in line
    )
    assert not MACHINE.search(text), MACHINE.search(text)


@each_notebook
def test_it_is_small_and_begins_with_its_title(path):
    assert path.stat().st_size < LARGEST
    first = read(path)["cells"][0]
    assert first["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")
