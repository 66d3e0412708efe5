"""The table of what tracing costs: every row, whatever the times."""

import re

import pytest
from command_line import made, refused, save, says

from interp.app.bench import OUT_OF_MEMORY, ROUTES, _markdown


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


def rows_of(table: str) -> list[list[str]]:
    rows = [line for line in table.splitlines() if re.match(r"\| *\d", line)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.slow
def test_every_route_has_a_row_with_its_ratio(llama, tmp_path):
    out = tmp_path / "results.md"
    out.write_text("# Results\n")
    options = ["--tokens", "64", "--repeats", 1, "--threads", 1, "--out", out]
    table = made("bench", "tap", llama, *options)
    assert out.read_text("utf-8") == f"# Results\n{table}"
    rows = rows_of(table)
    assert [row[:2] for row in rows] == [["64", words] for words in ROUTES.values()]
    for row in rows:
        assert all(float(cell.replace(",", "")) >= 0 for cell in row[2:])
    assert rows[0][3] == "1.00"
    assert rows[0][5] == "1.00"
    assert says(table, "1 threads", "fastest of 1", "interp bench tap", "torch")


def test_what_the_machine_has_no_memory_for_is_said():
    cells: dict[tuple[str, int], dict[str, float] | None] = {
        (route, 64): {"cpu": 2.0, "wall": 1.0, "extra": 2**20} for route in ROUTES
    }
    cells["eager", 64] = None
    cells["traced", 64] = {"cpu": 3.0, "wall": 1.5, "extra": 2**21}
    rows = rows_of(_markdown("m", [64], cells, 2, 3, "interp bench tap"))
    assert rows[1][2:] == ["3.00", "1.50", "1.50", "1.50", "2"]
    assert rows[-1][2] == "not enough memory"


def test_a_measurement_that_fails_says_why(tmp_path):
    options = ["--tokens", "64", "--out", tmp_path / "results.md"]
    line = refused("bench", "tap", tmp_path / "none", *options)
    assert says(line, "64 tokens", "no such file or folder", "Check the path.")


def test_a_place_that_cannot_be_written_is_told_before_measuring(llama, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("bench", "tap", llama, "--out", tmp_path / "file" / "results.md")
    assert says(line, "results.md cannot be written", "--out")


def test_the_exit_code_for_short_memory_is_no_other():
    assert OUT_OF_MEMORY not in (0, 1, 2, 130)
