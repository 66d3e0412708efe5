"""Figures and words on how detectors agree, and their section of the page."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hand_atlas import encoder_atlas, hand_atlas
from test_viz_report import Page

from interp.errors import InputError
from interp.probes.agreement import agreement, intersections, overlap
from interp.probes.reading import Bootstrap
from interp.viz.agreement import RHO, by_similarity, correlation_map, overlap_plot
from interp.viz.pairs import pair_rows, told
from interp.viz.report import render

FEW = Bootstrap(resamples=50)
MINUS = "\N{MINUS SIGN}"
TITLES = {"a": "alpha", "b": "beta", "c": "gamma", "d": "delta"}


def heads(**signals):
    arrays = {
        name: xr.DataArray(np.asarray(values, dtype=float), dims=("layer", "head"))
        for name, values in signals.items()
    }
    return xr.Dataset(arrays)


def alike(n_layers=12, n_heads=5, seed=0):
    """a and b agree, c opposes both, d is by itself."""
    rng = np.random.default_rng(seed)
    base, near, far, alone = rng.normal(size=(4, n_layers, n_heads))
    return heads(
        a=base, b=base + 0.2 * near, c=-base + 0.4 * far, d=alone, zero=0 * base
    )


def found(data):
    return agreement(data, bootstrap=FEW)


def sets(*rows):
    """Intersections as (detectors, number of heads)."""
    names = [f"L{i}.H0" for i in range(100)]
    table = [(tuple(each), n, ",".join(names[:n])) for each, n in rows]
    return pd.DataFrame(table, columns=["detectors", "size", "heads"])


def traces(figure: Any) -> Any:
    return figure.data


def columns_of(figure):
    """Detectors of each column, read off the dots."""
    names = figure.layout.yaxis2.ticktext
    scatters = [trace for trace in traces(figure) if trace.type == "scatter"]
    dots = [trace for trace in scatters if trace.hovertemplate]
    return [{names[y].strip() for y in trace.y} for trace in dots]


class TestMap:
    def test_each_pair_stands_once_with_its_number(self):
        data = found(alike())
        cells = traces(correlation_map(data))[0]
        z = np.array(cells.z, dtype=float)
        assert np.isfinite(z).sum() == 6
        for row, column in zip(*np.nonzero(np.isfinite(z)), strict=True):
            pair = data.sel(detector=cells.y[row], other=cells.x[column])
            assert z[row, column] == np.float32(pair["rho"].item())
            shown = float(cells.text[row][column].strip("</b>").replace(MINUS, "-"))
            assert shown == pytest.approx(pair["rho"].item(), abs=0.005 + 1e-9)

    def test_colors_run_evenly_from_minus_one_to_one(self):
        cells = traces(correlation_map(found(alike())))[0]
        assert (cells.zmin, cells.zmax) == (-1, 1)
        assert cells.autocolorscale

    def test_what_chance_explains_is_not_bold(self):
        data = found(alike())
        cells = traces(correlation_map(data))[0]
        for row, name in enumerate(cells.y):
            for column, other in enumerate(cells.x[: row + 1]):
                p = data["p_holm"].sel(detector=name, other=other).item()
                assert cells.text[row][column].startswith("<b>") == (p < 0.05)

    def test_hovering_tells_interval_heads_and_p(self):
        cells = traces(correlation_map(found(alike())))[0]
        hover = cells.hovertext[0][0]
        for word in (f"{RHO} = ", "interval ", "within layers", "60 heads", "p = "):
            assert word in hover

    def test_those_that_agree_are_neighbors(self):
        data = found(alike())
        order = [data["detector"].values[i] for i in by_similarity(data["rho"])]
        assert abs(order.index("a") - order.index("b")) == 1

    def test_many_detectors_have_colors_without_numbers(self):
        grid = np.random.default_rng(0).normal(size=(20, 5, 4))
        many = heads(**{f"d{i}": values for i, values in enumerate(grid)})
        assert traces(correlation_map(found(many)))[0].texttemplate is None

    def test_an_unknown_correlation_is_a_dash_and_no_color(self):
        a, b = np.full((2, 2, 3), np.nan)
        a[0], b[1] = [1, 2, 3], [3, 1, 2]
        cells = traces(correlation_map(found(heads(a=a, b=b))))[0]
        assert cells.text[0][0] == "—"
        assert not np.isfinite(np.array(cells.z, dtype=float)).any()

    def test_names_are_shown_letter_by_letter(self):
        data = alike().rename(a="<img src=x>")
        cells = traces(correlation_map(found(data)))[0]
        assert "&lt;img src=x&gt;" in {*cells.x, *cells.y}
        assert "<img" not in str(cells)

    @pytest.mark.parametrize("wrong", [np.eye(3), xr.Dataset({"rho": 1})])
    def test_something_else_is_refused(self, wrong: Any):
        with pytest.raises(InputError, match="p_holm"):
            correlation_map(wrong)


class TestOverlap:
    def test_columns_are_the_exact_intersections_by_size(self):
        figure = overlap_plot(sets(("a", 9), ("ab", 4), ("b", 3), ("abc", 2), ("c", 1)))
        bars = next(t for t in traces(figure) if t.type == "bar" and t.text)
        assert list(bars.y) == [4, 2]
        assert columns_of(figure) == [{"a", "b"}, {"a", "b", "c"}]

    def test_rows_split_each_set_into_shared_and_alone(self):
        figure = overlap_plot(sets(("a", 9), ("ab", 4), ("b", 3), ("abc", 2), ("c", 1)))
        shared, alone = (t for t in traces(figure) if t.orientation == "h")
        assert list(shared.x) == [6, 6, 2]
        assert list(alone.x) == [9, 3, 1]
        assert "<b>a</b>: 15 heads" in alone.hovertemplate[0].replace("\xa0", "")

    def test_at_most_fifteen_are_drawn_and_the_rest_is_summed(self):
        pairs = [(f"a{name}", 3) for name in "bcdefghijklmnopqr"]
        figure = overlap_plot(sets(*pairs))
        assert len(columns_of(figure)) == 15
        (note,) = figure.layout.annotations
        assert note.text == "2 more combinations, 6 heads together"
        assert not overlap_plot(sets(*pairs[:15])).layout.annotations

    def test_sets_without_a_common_head_are_drawn_too(self):
        figure = overlap_plot(sets(("a", 3), ("b", 3)))
        assert columns_of(figure) == []

    def test_hovering_names_heads_but_not_hundreds(self):
        figure = overlap_plot(sets(("ab", 30)))
        bars = next(t for t in traces(figure) if t.type == "bar" and t.text)
        assert "L11.H0<br>and 18 more" in bars.hovertemplate[0]

    def test_it_adds_up_on_an_atlas(self):
        table = intersections(hand_atlas(8, 6, 2, tokens=60)["heads"].to_dataset(), 0.2)
        figure = overlap_plot(table)
        rows = [t for t in traces(figure) if t.orientation == "h"]
        whole = np.sum([row.x for row in rows], axis=0)
        assert (whole == round(0.2 * 48)).sum() >= 8  # entropy lacks a head

    def test_names_are_shown_letter_by_letter(self):
        table = sets((["<b>x", "y"], 2))
        assert "<b>x" not in str(overlap_plot(table).to_json()).replace("\\u003c", "<")

    def test_something_else_is_refused(self):
        with pytest.raises(InputError, match="got none"):
            overlap_plot(sets())
        with pytest.raises(InputError, match="without detectors"):
            overlap_plot(pd.DataFrame({"size": [1], "heads": [""]}))


class TestWords:
    def test_the_strongest_are_named_with_their_intervals(self):
        data, overlaps = found(alike()), overlap(alike(), 0.2)
        most, least, shared = told(data, overlaps, TITLES)
        low, high = data["rho_interval"].sel(detector="a", other="b").values
        assert most.startswith(f"Alpha and beta rank the heads most alike: {RHO} = 0.9")
        assert f"({low:.2f} to {high:.2f}; within layers 0.9" in most
        assert f"gamma rank the heads most opposed: {RHO} = {MINUS}0.9" in least
        assert "Alpha and beta share most of their strongest heads: " in shared
        assert "of 12, where chance would give 2.4, or " in shared

    def test_nothing_sure_is_said_to_be_so(self):
        noise = np.random.default_rng(0).normal(size=(4, 6, 5))
        data = heads(**dict(zip("abcd", noise, strict=True)))
        said = told(found(data), overlap(data), TITLES)
        assert said == ["No two surely rank the heads alike or opposed."]

    def test_the_table_has_every_pair_the_strongest_first(self):
        rows = pair_rows(found(alike()), overlap(alike()))
        sizes = [abs(float(row["rho"].replace(MINUS, "-"))) for row in rows]
        assert len(rows) == 6
        assert sizes == sorted(sizes, reverse=True)
        assert rows[0]["overlap"] != "—"

    def test_a_detector_without_a_set_has_no_overlap(self):
        data = alike().assign(d=alike()["d"].round())
        rows = pair_rows(found(data), overlap(data))
        assert {row["overlap"] for row in rows if "d" in row["other"]} == {"—"}


class TestPage:
    def test_it_stands_between_the_maps_and_the_tokens(self):
        page = Page(render(hand_atlas(8, 4, 2, tokens=60)))
        places = [page.ids.index(name) for name in ("maps", "agreement", "sinks")]
        assert places == sorted(places)
        assert "#agreement" in page.links
        assert f"rank the heads most opposed: {RHO} = {MINUS}" in page.words
        assert "global_head (it is a label, not a quantity)" in page.words

    def test_two_detectors_are_enough(self):
        page = Page(render(encoder_atlas()))
        assert page.open == []
        assert "Every pair, and these numbers in Python" in page.words

    def test_fewer_are_said_to_be_too_few(self):
        atlas = hand_atlas(4, 2, 1, tokens=60)
        kept = atlas["heads"].to_dataset()[["sinks", "global_head"]]
        atlas["heads"] = xr.DataTree(kept)
        assert (
            "Fewer than two measurements rank the heads." in Page(render(atlas)).words
        )

    def test_a_hostile_name_stays_text(self):
        atlas = hand_atlas(4, 3, 1, tokens=60)
        data = atlas["heads"].to_dataset().rename(sinks='"><b1>')
        data['"><b1>'].attrs["long_name"] = "</script><b1>%{z}"
        atlas["heads"] = xr.DataTree(data)
        page = Page(render(atlas))
        assert page.open == []
        assert "b1" not in {tag for tag, _ in page.tags}
        assert '"><b1>' in page.words
