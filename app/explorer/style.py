"""The frame's style sheet: colors come from Streamlit's theme, so both modes work."""

from PIL import Image

from interp.viz import theme

ICON = Image.new("RGB", (4, 4))
"""A map of heads, as the browser's tab shows it."""
ICON.putdata(
    [
        tuple(bytes.fromhex(theme.LIGHT.sequential[(7 * cell) % 10 + 1][1:]))
        for cell in range(16)
    ]
)

_STYLE = """
.stMainBlockContainer{padding:2.2rem clamp(1rem,3vw,5rem) 3rem}
.stMain .stColumn{min-width:8.5rem}
.stMain .stColumn:has(.stPlotlyChart){min-width:17rem}
.stMain .stButtonGroup>div{flex-wrap:wrap}
.stMain h1{font-size:1.55rem;padding:0;margin:0}
.stMain h3{font-size:1.08rem;padding:.6rem 0 0;margin:0}
.interp-question{margin:0;opacity:.75}
.interp-read{font-size:.86rem;line-height:1.35;margin:0;opacity:.85}
.interp-source{font-size:.8rem;opacity:.85}
.interp-source a{color:inherit}
.interp-note,.interp-problem{font-size:.86rem;line-height:1.4;border-radius:.4rem;
padding:.5rem .7rem;overflow-wrap:anywhere;white-space:pre-wrap}
.interp-note{background:rgba(128,136,144,.14)}
.interp-problem{border:1px solid #dd6b1f;background:rgba(221,107,31,.1)}
.interp-problem::before{content:"\\26A0\\FE0E ";font-weight:600}
"""


def style(palette: theme.Palette) -> str:
    """The style sheet of a mode: text on an accent has the color of the card."""
    return (
        f"{_STYLE}button[kind=primary]{{color:{palette.card}}}"
        f"a:focus-visible{{outline:2px solid {palette.accent};outline-offset:1px}}"
    )
