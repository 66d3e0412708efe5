import json

import numpy as np
import pytest
import xarray as xr
from hand_ablation import hand_ablation

from interp.errors import InputError
from interp.viz import theme
from interp.viz.effects import effect_plot, has_grid, item_grid, item_scatter, measured


@pytest.fixture(scope="module")
def tree():
    return hand_ablation()


@pytest.fixture(scope="module")
def effects(tree):
    return tree["task_1"]["effects"]["exact"].to_dataset()


@pytest.fixture(scope="module")
def items(tree):
    return tree["task_1"]["items"].to_dataset()["exact"]


def rows(items, *names):
    return items.sel(intervention=list(names))


class TestEffectPlot:
    def test_treatments_stand_above_their_controls(self, effects):
        controls, treated = effect_plot(effects).data
        assert list(treated.x) == pytest.approx([-0.9, -0.9])
        assert list(treated.y) == [0, 1]
        assert len(controls.x) == 2 * 3
        assert all(0 < y % 1 < 0.5 for y in controls.y)

    def test_the_unit_and_what_is_measured_are_on_the_axis(self, effects):
        shown = json.dumps(effect_plot(effects).to_plotly_json()["layout"], default=str)
        assert "change of the share of exact answers (fraction)" in shown

    def test_whiskers_end_at_the_interval(self, effects):
        wide = effects.copy(deep=True)
        wide["effect_interval"][0] = [-1.0, -0.5]
        whiskers = effect_plot(wide).data[1].error_x
        assert whiskers.arrayminus[0] == pytest.approx(0.1)
        assert whiskers.array[0] == pytest.approx(0.4)

    def test_what_cannot_be_interpreted_is_gray(self, effects):
        gray = effects.copy(deep=True)
        gray["interpretable"][1] = False
        colors = effect_plot(gray).data[1].marker.color
        assert list(colors) == [theme.MARKS[1], theme.NEUTRAL]

    def test_without_controls_none_are_in_the_legend(self, effects):
        alone = effects.copy(deep=True)
        alone["control"][:] = np.nan
        assert effect_plot(alone).data[0].showlegend is False

    def test_what_is_no_effect_is_refused(self):
        with pytest.raises(InputError, match="what paired_effects returned"):
            effect_plot(xr.Dataset())


class TestItems:
    def test_a_panel_for_each_and_one_for_the_controls(self, items):
        shown = rows(items, "none", "zero", "mean")
        figure = item_grid(shown, rows(items, "zero control 1", "zero control 2"))
        titles = [each.text for each in figure.layout.annotations]
        assert titles == ["untouched", "zero", "mean", "random controls, mean"]
        assert figure.data[0].z.shape == (3, 2)
        assert list(figure.data[0].x) == ["512", "1,024"]
        assert list(figure.data[0].y) == ["0.1", "0.5", "0.9"]
        assert figure.data[1].z == pytest.approx(0.1)
        assert figure.layout.coloraxis.cmax == 1

    def test_a_cell_is_the_mean_of_its_items(self, items):
        twice = xr.concat([items, 0 * items], "item")
        assert item_grid(rows(twice, "none")).data[0].z == pytest.approx(0.5)

    def test_a_cell_without_items_is_empty(self, items):
        z = item_grid(rows(items, "none").isel(item=slice(5))).data[0].z
        assert np.isnan(z).sum() == 1

    def test_items_without_a_place_have_no_grid(self, tree):
        texts = tree["task_0"]["items"].to_dataset()["nll"]
        assert not has_grid(texts)
        with pytest.raises(InputError, match="depth and length"):
            item_grid(texts)

    def test_items_lie_on_the_line_where_nothing_changes(self, tree):
        texts = tree["task_0"]["items"].to_dataset()["nll"]
        line, points, _ = item_scatter(rows(texts, "none", "zero", "mean")).data
        assert list(line.x) == list(line.y)
        assert np.asarray(points.y) - np.asarray(points.x) == pytest.approx(0.5)
        with pytest.raises(InputError, match="with a treatment"):
            item_scatter(rows(texts, "none"))


def test_a_metric_without_a_noun_keeps_its_long_name():
    effects = xr.Dataset(attrs={"metric": "rouge", "long_name": "words given"})
    assert measured(effects) == "words given"
