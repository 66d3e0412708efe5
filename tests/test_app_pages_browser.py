"""The main path of each page of the explorer, by clicks in a real browser."""

from typing import Any

import numpy as np
import pytest
import torch
from explorer_browser import (
    choose,
    click,
    downloaded,
    drag,
    explorer,
    page,
    settled,
    table,
)
from tolerance import assert_as_precise

import interp
from interp.tasks.reading import shipped

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.real]

TOKENS = 48
STORE = "source=lighthouse"
LIVE = f"source=run+a+model+here&tokens={TOKENS}"


@pytest.fixture(scope="module")
def address(tmp_path_factory, lighthouse):
    log = tmp_path_factory.mktemp("explorer") / "log.txt"
    with explorer(lighthouse, log=log) as found:
        yield found
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def weights():
    """The model's own weights of L18.H6, in float64 and in float32."""
    made = {}
    for dtype in (torch.float64, torch.float32):
        model: Any = interp.load("smollm2-135m", device="cpu")
        module = model.module.to(dtype)
        module.set_attn_implementation("eager")
        ids = torch.tensor([model.tokenizer(shipped())["input_ids"][:TOKENS]])
        with torch.no_grad():
            made[dtype] = module(ids, output_attentions=True).attentions[18][0, 6]
    return made


def test_a_head_has_its_numbers_its_map_its_profiles_and_its_ablation(
    chromium, address
):
    with page(chromium, address) as found:
        found.goto(f"{address}/head?{LIVE}")
        settled(found, "What is lost without it")
        box = found.get_by_label("Head", exact=True)
        box.fill("L18.H6")
        box.press("Enter")
        settled(found, "L18.H6: single weights")
        settled(found, "Queries with the largest induction of L18.H6")
        assert found.locator(".js-plotly-plot").count() == 4
        assert {row["detector"] for row in table(found, 1)} > {"sinks", "induction"}
        assert len(table(found, 2)) == TOKENS * (TOKENS + 1) // 2
        assert len(table(found, 3)) == TOKENS
        found.get_by_role("button", name="Run the ablation").click()
        settled(found, "Diamond: the effect of these heads")
        assert found.get_by_role("alert").count() == 0
        assert not found.faults


def test_a_click_on_a_token_says_who_looks_at_it(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/tokens?{STORE}")
        settled(found, "Who looks at token 0")
        found.locator(".text button").nth(5).click()
        settled(found, "Who looks at token 5")
        found.wait_for_url("**token=5**")
        found.locator(".text button.here").press("ArrowRight")
        found.keyboard.press("Enter")
        settled(found, "Who looks at token 6")
        choose(found, "Color by", "sink_share")
        found.wait_for_url("**signal=sink_share**")
        settled(found, "share of heads")
        found.reload()
        settled(found, "Who looks at token 6")
        rows = table(found)
        assert len(rows) == TOKENS
        assert float(rows[0]["sink_share"]) > 0.5
        assert b"<!doctype html>" in downloaded(found, "HTML")
        assert not found.faults


def test_boxes_zoom_to_one_cell_that_holds_the_exact_weight(chromium, address, weights):
    with page(chromium, address) as found:
        found.goto(f"{address}/long_map?{STORE}&head=L18.H6")
        settled(found, "Queries 0 to 47, keys 0 to 47")
        assert same_map(table(found), weights)
        drag(found, 0, (1.8, 19.6), (12.2, 30.3))
        settled(found, "Queries 20 to 30, keys 2 to 12; every weight.")
        drag(found, 0, (5.7, 24.7), (6.3, 25.3))
        settled(found, "query 25")
        found.wait_for_url("**zoom=25-25%2C6-6**")
        assert same_map(table(found), weights)
        found.reload()
        settled(found, "looks at key 6")
        found.get_by_role("button", name="Zoom out", exact=True).first.click()
        settled(found, "Queries 24 to 25, keys 5 to 6; every weight.")
        found.get_by_role("button", name="Whole map").click()
        settled(found, "Queries 0 to 47, keys 0 to 47")
        for scale in ("linear", "rank"):
            choose(found, "Colors", scale)
            found.wait_for_url(f"**scale={scale}**")
        settled(found, "Queries 0 to 47")
        assert not found.faults


def same_map(rows, weights) -> bool:
    """Whether every row of the file holds the weight of its query and key."""
    cells = tuple(np.array([(int(r["query"]), int(r["key"])) for r in rows]).T)
    truth, eager = (weights[d][cells] for d in (torch.float64, torch.float32))
    ours = torch.tensor([float(row["block_mean"]) for row in rows])
    error = (weights[torch.float32] - weights[torch.float64]).abs().max()
    assert_as_precise(ours, truth, eager, elsewhere=float(error))
    return bool(rows)


def test_a_lasso_is_ablated_shows_its_effect_and_survives_a_reload(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/ablate?{STORE}&controls=none")
        settled(found, "What the model says")
        found.locator(".js-plotly-plot").first.wait_for()
        drag(found, 0, (3.5, 1.5), (5.5, 1.5), (5.5, 3.5), (3.5, 3.5), (3.5, 1.6))
        settled(found, "Without 4 heads")
        found.wait_for_url("**heads=L4.H2%2CL4.H3%2CL5.H2%2CL5.H3**")
        found.get_by_role("button", name="Run the ablation").click()
        effect = found.get_by_text("Diamond: the effect of these heads").first
        effect.or_(found.get_by_role("button", name="Cancel")).first.wait_for()
        found.reload()
        settled(found, "Diamond: the effect of these heads")
        assert "zero" in {row["intervention"] for row in table(found, 1)}
        assert b"L4.H2,L4.H3,L5.H2,L5.H3" in downloaded(found, "Python", 1)
        found.get_by_role("button", name="Let it speak").click()
        settled(found, "Greedy continuation of the prompt")
        said = table(found, -1)
        assert [row["run"] for row in said] == ["untouched", "without the heads"]
        assert said[0]["text"] != said[1]["text"]
        for row in said:
            assert found.get_by_text(row["text"].strip().split("\n")[0][:30]).count()
        assert not found.faults


@pytest.mark.parametrize(
    ("way", "more", "second"),
    [
        ("another text", "", "orchard"),
        ("without some heads", "&without=L17.H5", "without L17.H5"),
        ("another model or store", "&by=induction", "on text (lighthouse)"),
    ],
)
def test_two_runs_are_compared_head_by_head(chromium, address, way, more, second):
    with page(chromium, address) as found:
        found.goto(f"{address}/compare?{LIVE}{more}")
        settled(found, "Compare with")
        choose(found, "Compare with", way)
        settled(found, "Second minus first")
        settled(found, second)
        rows = table(found)
        click(found, 2, 20, 5)
        found.wait_for_url("**head=L20.H5**")
        changed = [float(row["second"]) - float(row["first"]) for row in rows]
        assert any(changed)
        assert not found.faults


@pytest.mark.parametrize("model", ["whisper-base", "smollm2-135m"])
def test_attention_is_compared_with_saliency(chromium, address, model):
    with page(chromium, address) as found:
        found.goto(f"{address}/crossattn?model={model}&written=4")
        found.get_by_role("button", name="Compare attention with saliency").click()
        settled(found, "How far they agree")
        found.locator(".js-plotly-plot").nth(2).wait_for()
        assert table(found, 2)
        found.reload()
        settled(found, "How far they agree")
        assert found.get_by_role("alert").count() == 0
        assert not found.faults
