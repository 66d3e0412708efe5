"""The table of families: a sample is made anew, and the committed one is like it."""

import re
from pathlib import Path

import pytest
from command_line import made, refused, says

from interp.app import families as page
from interp.families import families

TABLE = Path(__file__).parent.parent / "docs" / "families.md"

SAMPLE = ["llama", "falcon", "t5", "longformer", "mamba"]
"""By the interface, in torch's functions, at three sites, unreachable, no attention."""


def rows_of(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return {row[0].strip("`"): row for row in rows}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("families") / "families.md"
    made("doctor", "--families", ",".join(SAMPLE), "--out", out)
    return rows_of(out.read_text("utf-8"))


def test_a_family_has_its_door_sites_and_parity_or_the_reason(sample):
    assert list(sample) == SAMPLE
    doors = {name: row[2] for name, row in sample.items()}
    assert doors["llama"] == doors["t5"] == "interface"
    assert doors["falcon"] == "torch functions"
    assert doors["longformer"] == doors["mamba"] == ""
    assert sample["t5"][3] == "encoder 2, self 2, cross 2"
    for name in ("llama", "falcon", "t5"):
        assert float(sample[name][4]) <= 1
    assert "rows" in sample["longformer"][5]
    assert "has no attention" in sample["mamba"][5]


def test_the_committed_table_says_of_the_sample_what_is_so(sample):
    committed = rows_of(TABLE.read_text("utf-8"))
    for name, row in sample.items():
        own = committed[name]
        assert [*own[:4], own[5]] == [*row[:4], row[5]], name


def test_the_committed_table_is_whole_and_in_this_format():
    text = TABLE.read_text("utf-8")
    head = "| " + " | ".join(c.removesuffix(":") for c in page.COLUMNS) + " |"
    assert head in text
    committed = rows_of(text)
    assert len(committed) >= 60
    reached = {name: row for name, row in committed.items() if row[2]}
    assert len(reached) >= 60
    for name, row in committed.items():
        assert len(row) == len(page.COLUMNS), name
        assert set(row[2].split(", ")) <= {"", *page.DOORS.values()}, name
        assert row[5] or row[2], f"{name} has neither a door nor a reason"
        assert not row[2] or re.fullmatch(r"\d+\.\d\d", row[4]), name
        assert not row[4] or float(row[4]) <= 1, name
    known = {family.name for family in families()}
    assert set(committed) <= known


def test_what_is_no_family_is_refused():
    assert says(refused("doctor", "--families", "lama"), "'lama'", "or all")
    assert says(refused("doctor"), "either a model or --families", "neither")
    assert says(refused("doctor", "m", "--families", "all"), "got both")
