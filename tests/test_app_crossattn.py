import json

import pandas as pd
import pytest
from command_line import made, refused, run, save, says


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "bart")


def test_a_text_gives_page_tables_and_store_and_is_not_made_twice(folder, tmp_path):
    out = tmp_path / "out"
    asked = [folder, "w5 w9 w33", "--written", "w4 w9", "--out", out]
    asked = ["crossattn", *asked, "--methods", "gradient"]
    page = made(*asked)

    assert page == str(out / "index.html")
    table = pd.read_csv(out / "crossattn.csv")
    assert set(table["of"]) == {"all", "layer", "head", "head number", "explanation"}
    assert (out / "curves.csv").exists()
    assert not (out / "parts").exists()
    assert json.loads((out / "run.json").read_text())["finished"]
    assert says(run(*asked).err, "nothing was left to do")


def test_wrong_arguments_end_in_one_line_with_a_remedy(folder, tmp_path):
    assert says(
        refused("crossattn", folder, "w5", "--methods", "gradients"), "'gradient'"
    )
    assert says(refused("crossattn", folder, "gone.txt"), "does not exist")
