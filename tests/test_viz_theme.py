import subprocess
import sys
from itertools import pairwise

import plotly.io as pio
import pytest

from interp.viz import theme
from interp.viz.theme import PALETTES, contrast, luminance

MODES = sorted(PALETTES)


def is_monotone(values):
    steps = [b - a for a, b in pairwise(values)]
    return all(step > 0 for step in steps) or all(step < 0 for step in steps)


@pytest.mark.parametrize("mode", MODES)
def test_sequential_colors_only_get_darker_or_only_lighter(mode):
    assert is_monotone([luminance(color) for color in PALETTES[mode].sequential])


@pytest.mark.parametrize("mode", MODES)
def test_signed_colors_differ_from_their_middle_in_lightness_on_both_sides(mode):
    lights = [luminance(color) for color in PALETTES[mode].diverging]
    middle = len(lights) // 2
    assert is_monotone(lights[: middle + 1])
    assert is_monotone(lights[middle:])


@pytest.mark.parametrize("mode", MODES)
def test_text_reads_on_paper_and_on_every_step_of_a_strip(mode):
    palette = PALETTES[mode]
    for ink in (palette.ink, palette.muted, palette.accent):
        assert contrast(ink, palette.paper) >= 4.5
        assert contrast(ink, palette.card) >= 4.5
    assert all(contrast(ink, step) >= 4.5 for step, ink in palette.classes())


@pytest.mark.parametrize("mode", MODES)
def test_marks_stand_out_from_both_papers(mode):
    colors = (*theme.MARKS, theme.NEUTRAL)
    assert all(contrast(color, PALETTES[mode].card) >= 3 for color in colors)


def test_contrast_of_black_and_white_is_twenty_one():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_registering_names_the_templates_and_leaves_the_default_alone():
    before = pio.templates.default
    theme.register()
    assert {"interp", "interp_dark"} <= set(pio.templates)
    assert pio.templates.default == before


def test_importing_registers_nothing():
    program = (
        "import plotly.io as pio, interp.viz.theme, interp.viz.maps; "
        "raise SystemExit('interp' in pio.templates)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
