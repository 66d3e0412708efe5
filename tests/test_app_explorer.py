"""The explorer's pages, run without a browser on stores and on a tiny model."""

import shutil
import time

import pytest
from hand_atlas import hand_atlas
from hostile import HOSTILE, with_tokens
from streamlit.testing.v1 import AppTest

from interp.app.explorer import selection
from interp.app.explorer import server as servers
from interp.app.explorer.server import Settings, configure
from interp.app.folder import save
from interp.app.pages import PAGES

PAGE = """
from interp.app.explorer.frame import show
from interp.app.pages import PAGES

[page] = [page for page in PAGES if page.path == "{}"]
show(page)
"""

pytestmark = pytest.mark.app


@pytest.fixture
def atlas(tmp_path):
    folder = tmp_path / "hand"
    tree = hand_atlas(layers=4, heads=2, kv_heads=1, tokens=60)
    save(with_tokens(tree, HOSTILE), folder / "atlas.zarr")
    return folder


@pytest.fixture(autouse=True)
def _own_server():
    yield
    servers._server = None


def opened(page: str, **address: str) -> AppTest:
    """A page, once its jobs have ended."""
    app = AppTest.from_string(PAGE.format(page), default_timeout=120)
    for name, value in address.items():
        app.query_params[name] = value
    return waited(app)


def waited(app: AppTest) -> AppTest:
    """The page after everything that it started has ended."""
    for _ in range(3000):
        app.run()
        if not servers.server().jobs.is_busy:
            return app.run()
        time.sleep(0.05)
    raise AssertionError("a job goes on")


def shown(app: AppTest) -> str:
    """All HTML of the page, in order."""
    return "\n".join(str(each.proto.body) for each in app.get("html"))


def problems(app: AppTest) -> list[str]:
    """What the page says has gone wrong."""
    assert not app.exception
    found = [str(each.proto.body) for each in app.get("html")]
    return [body for body in found if 'class="interp-problem"' in body]


def figures(app: AppTest) -> dict[str, str]:
    """Plotly's JSON of each chart, by its key."""
    return {each.proto.id: each.proto.spec for each in app.get("plotly_chart")}


PATHS = [page.path for page in PAGES if not page.alone]


@pytest.mark.parametrize("path", PATHS)
def test_each_page_opens_and_hostile_tokens_are_never_its_markup(path, atlas):
    configure(Settings((atlas,), model="no-such-model"))
    app = opened(path)
    assert not app.exception
    assert f"<h1>{next(p.title for p in PAGES if p.path == path)}</h1>" in shown(app)
    everything = shown(app) + "".join(figures(app).values())
    assert not [text for text in HOSTILE if "<" in text and text in everything]


def test_the_first_screen_shows_the_maps_of_the_store(atlas):
    configure(Settings((atlas,)))
    app = opened("overview")
    assert len(app.get("plotly_chart")) == 6
    assert "60 tokens, 4 layers of 2 heads" in shown(app)


def test_the_address_chooses_the_head_of_every_page(atlas):
    configure(Settings((atlas,)))
    assert "Head <b>L2.H1</b>" in shown(opened("overview", head="L2.H1"))
    assert "Head L2.H1" in shown(opened("head", head="L2.H1"))


@pytest.mark.parametrize("named", ["L99.H0", "twelve"])
def test_a_head_that_is_not_there_is_told_in_the_page(atlas, named):
    configure(Settings((atlas,)))
    app = opened("overview", head=named)
    [problem] = problems(app)
    assert named in problem
    assert app.sidebar.selectbox(key="source").value == "hand"


def test_an_address_that_names_what_is_gone_says_so_and_shows_the_rest(atlas):
    configure(Settings((atlas,)))
    app = opened("overview", source="deleted-store")
    assert "deleted-store" in shown(app)
    assert len(app.get("plotly_chart")) == 6


def test_a_deleted_store_is_told_and_another_can_be_chosen(atlas):
    configure(Settings((atlas,)))
    shutil.rmtree(atlas)
    app = opened("overview")
    assert "not there" in " ".join(problems(app))
    assert app.sidebar.selectbox(key="source").options == ["hand", selection.LIVE]


def test_a_damaged_store_is_told(atlas):
    configure(Settings((atlas,)))
    for header in (atlas / "atlas.zarr" / "heads").rglob("zarr.json"):
        header.write_text("{")
    assert "damaged" in " ".join(problems(opened("head")))


def test_a_model_that_does_not_load_is_told_and_can_be_tried_again(tmp_path):
    configure(Settings(model=str(tmp_path / "nothing")))
    app = opened("overview")
    assert "there is no such file or folder" in " ".join(problems(app))
    assert [b.label for b in app.main.button] == ["Run again"]


def test_a_pasted_text_becomes_the_text_of_all_pages(atlas):
    configure(Settings((atlas,), model="no-such-model"))
    app = opened("overview")
    app.text_area(key="pasted").set_value(HOSTILE[0] + " and more").run()
    next(b for b in app.sidebar.button if b.label == "Read this text").click().run()
    assert app.sidebar.selectbox(key="source").value == selection.LIVE
    label = app.sidebar.selectbox(key="text").value
    assert servers.server().texts.get(label) == HOSTILE[0] + " and more"


def test_two_sessions_do_not_see_each_others_texts(atlas):
    configure(Settings((atlas,), model="no-such-model"))
    label = servers.server().texts.add("a secret text")
    mine = opened("overview", source=selection.LIVE, text=label)
    assert mine.sidebar.selectbox(key="text").value == label
    other = opened("overview", source=selection.LIVE)
    assert label not in other.sidebar.selectbox(key="text").options


def test_the_strongest_heads_are_taken_by_a_button(atlas):
    configure(Settings((atlas,)))
    app = opened("ablate", by="sinks")
    app.number_input(key="count").set_value(2).run()
    next(b for b in app.main.button if b.label == "Take the strongest").click().run()
    assert len(app.text_input(key="heads").value.split(",")) == 2


def test_an_ablation_of_a_store_whose_model_is_not_here_is_refused(atlas):
    tree = hand_atlas(layers=4, heads=2, kv_heads=1, tokens=60)
    tree.attrs["model"] = "somebodys-model"
    save(tree, atlas / "atlas.zarr")
    configure(Settings((atlas,)))
    assert "somebodys-model" in " ".join(problems(opened("ablate")))


def test_no_head_to_ablate_is_told(atlas):
    configure(Settings((atlas,)))
    app = opened("ablate")
    app.text_input(key="heads").set_value(" ").run()
    assert "No head is chosen" in " ".join(problems(app))


def test_a_chosen_token_is_the_one_of_the_address(atlas):
    configure(Settings((atlas,)))
    app = opened("tokens", token="3", signal="sink_share")
    assert app.number_input(key="token").value == 3
    assert "Who looks at token 3" in shown(app)


def test_stores_are_compared_head_by_head(atlas, tmp_path):
    other = tmp_path / "other"
    tree = hand_atlas(layers=4, heads=2, kv_heads=1, tokens=60, seed=1)
    save(tree, other / "atlas.zarr")
    configure(Settings((atlas, other)))
    app = opened("compare", **{"with": "another model or store", "second": "other"})
    assert not problems(app)
    assert len(app.get("plotly_chart")) == 4
