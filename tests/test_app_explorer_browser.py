"""The explorer in a real browser, on the real default model and on a hostile store."""

import csv
import io

import pytest
from explorer_browser import browser, explorer, page, settled
from hand_atlas import hand_atlas
from hostile import HOSTILE, with_tokens

import interp
from interp.app.folder import save
from interp.probes import detect
from interp.tasks.reading import shipped
from interp.viz.tokens import visible

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.real]

TOKENS = 48
LIVE = f"source=run+a+model+here&tokens={TOKENS}"
READS = "smollm2-135m on lighthouse.txt"


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    tree = hand_atlas(layers=6, heads=4, kv_heads=2, tokens=80)
    save(with_tokens(tree, HOSTILE), folder / "hostile" / "atlas.zarr")
    with explorer(folder / "hostile", log=folder / "log.txt") as found:
        yield found


def click_cell(found, chart: int, layer: int, head: int) -> None:
    """Click a head of a map: where plotly says that the cell is."""
    place = (
        found.locator(".js-plotly-plot")
        .nth(chart)
        .evaluate(
            """(plot, [layer, head]) => {
            plot.scrollIntoView({block: "center"})
            const {xaxis: x, yaxis: y} = plot._fullLayout
            const box = plot.getBoundingClientRect()
            return [box.left + x._offset + x.l2p(layer),
                    box.top + y._offset + y.l2p(head)]
        }""",
            [layer, head],
        )
    )
    found.mouse.click(*place)


def downloaded(found, label: str, index: int = 0) -> bytes:
    with found.expect_download() as waiting:
        found.get_by_role("button", name=label).nth(index).click()
    return waiting.value.path().read_bytes()


def test_a_click_on_a_map_chooses_the_head_of_every_page(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/?{LIVE}")
        settled(found, READS)
        click_cell(found, 0, 7, 3)
        settled(found, "L7.H3")
        found.wait_for_url("**head=L7.H3**")
        found.get_by_role("link", name="Head").click()
        settled(found, "Head L7.H3")
        found.reload()
        settled(found, "Head L7.H3")
        assert "head=L7.H3" in found.url
        assert f"tokens={TOKENS}" in found.url
        assert not found.faults


def test_downloads_hold_what_is_shown(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/?{LIVE}")
        settled(found, READS)
        rows = list(csv.DictReader(io.StringIO(downloaded(found, "CSV").decode())))
        model = interp.load("smollm2-135m", device="cpu")
        trace = interp.trace(model, shipped(), max_tokens=TOKENS)
        sinks = detect(trace, ["sinks"])["sinks"]
        assert len(rows) == sinks.size
        for row in rows[::50]:
            place = {"layer": int(row["layer"]), "head": int(row["head"])}
            assert float(row["sinks"]) == float(sinks.sel(place))
        assert b"<svg" in downloaded(found, "SVG")[:200]
        assert downloaded(found, "PNG")[:4] == b"\x89PNG"
        assert b'head_map(heads["sinks"])' in downloaded(found, "Python").replace(
            b"'", b'"'
        )
        assert not found.faults


def test_a_click_on_a_token_says_who_looks_at_it(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/tokens?{LIVE}")
        settled(found, "Who looks at token 0")
        found.locator(".text button").nth(5).click()
        settled(found, "Who looks at token 5")
        assert "token=5" in found.url
        found.locator(".text button.here").press("ArrowRight")
        found.keyboard.press("Enter")
        settled(found, "Who looks at token 6")
        assert not found.faults


def test_an_ablation_runs_shows_its_effect_and_survives_a_reload(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/ablate?{LIVE}&controls=none")
        found.get_by_role("button", name="Run the ablation").click()
        found.reload()
        settled(found, "Diamond: the effect of these heads")
        found.get_by_role("button", name="Let it speak").click()
        settled(found, "Greedy continuation of the prompt")
        assert not found.faults


def test_a_run_can_be_cancelled_and_run_again(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/?source=run+a+model+here&tokens=1500")
        found.get_by_role("button", name="Cancel").click()
        settled(found, "Cancelled:")
        found.get_by_role("button", name="Run again").wait_for()
        assert not found.faults


def test_two_runs_are_compared(chromium, address):
    with page(chromium, address) as found:
        found.goto(f"{address}/compare?{LIVE}&with=without+some+heads")
        settled(found, "Second minus first")
        click_cell(found, 2, 20, 5)
        found.wait_for_url("**head=L20.H5**")
        assert not found.faults


@pytest.mark.parametrize("path", ["", "head", "tokens", "ablate", "compare"])
def test_hostile_tokens_are_text_on_every_page(chromium, address, path):
    with page(chromium, address) as found:
        found.goto(f"{address}/{path}?source=hostile&with=another+model+or+store")
        settled(found, "Source")
        found.locator(".js-plotly-plot").first.wait_for()
        assert found.evaluate("window.hacked") is None
        if path == "tokens":
            shown = found.locator(".text button").all_text_contents()
            for place, token in enumerate(HOSTILE):
                assert shown[2 * place] == visible(token, 40)
        assert not found.faults
