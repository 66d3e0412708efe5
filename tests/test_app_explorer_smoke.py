"""One page of the explorer in a real browser, where there is one."""

import pytest
from explorer_browser import browser, chromium, click, explorer, page, settled
from hand_atlas import hand_atlas

from interp.app.folder import save

pytestmark = [
    pytest.mark.app,
    pytest.mark.skipif(chromium() is None, reason="no chromium on the path"),
]


def test_the_first_page_is_drawn_and_a_click_chooses_a_head(tmp_path):
    tree = hand_atlas(layers=6, heads=4, kv_heads=2, tokens=40)
    save(tree, tmp_path / "hand" / "atlas.zarr")
    with (
        browser() as started,
        explorer(tmp_path / "hand", log=tmp_path / "log.txt") as address,
        page(started, address) as found,
    ):
        found.goto(address)
        settled(found, "40 tokens, 6 layers of 4 heads")
        found.locator(".js-plotly-plot").nth(5).wait_for()
        click(found, 0, 3, 2)
        found.wait_for_url("**head=L3.H2**")
        assert not found.faults
