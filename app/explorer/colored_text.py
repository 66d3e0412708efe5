"""The text itself, each token a button on the color of its value."""

from collections.abc import Callable, Sequence

import numpy as np
import streamlit as st
import xarray as xr
from streamlit.components.v2 import component

from interp.app.explorer.charts import mode
from interp.viz import theme
from interp.viz.arrays import unit
from interp.viz.numbers import number
from interp.viz.strips import color_scale, color_span
from interp.viz.tokens import STEPS, color_classes, visible

LIMIT = 1500
"""Tokens shown at once."""

_CSS = """
.text{font:13px/2 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
overflow-wrap:anywhere;max-height:19rem;overflow-y:auto;unicode-bidi:isolate}
.text button{all:unset;cursor:pointer;padding:2px 1px;border-radius:2px;
white-space:pre-wrap;unicode-bidi:isolate}
.text button[data-k="-"]{outline:1px dotted currentColor;outline-offset:-1px}
.text button.here{outline:2px solid #dd6b1f;outline-offset:0}
.text button:focus-visible{outline:2px solid #2a86c4;outline-offset:1px}
"""

# Tokens are set as text, never as HTML: no token can act.
_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  let box = parentElement.querySelector(".text")
  if (!box) {
    box = document.createElement("div")
    box.className = "text"
    box.setAttribute("role", "group")
    parentElement.appendChild(box)
  }
  box.setAttribute("aria-label", data.label)
  const drawn = document.createDocumentFragment()
  data.tokens.forEach((token, place) => {
    const button = document.createElement("button")
    const letter = data.letters[place]
    const color = data.colors[letter]
    button.textContent = token
    button.title = data.titles[place]
    button.dataset.k = letter
    button.tabIndex = place === data.here - data.first ? 0 : -1
    if (color) {
      button.style.background = color[0]
      button.style.color = color[1]
    }
    if (place === data.here - data.first) button.className = "here"
    button.onclick = () => setTriggerValue("token", place + data.first)
    drawn.appendChild(button)
    if (data.breaks.includes(place)) drawn.appendChild(document.createElement("br"))
  })
  box.replaceChildren(drawn)
  box.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
    if (!step) return
    const all = [...box.querySelectorAll("button")]
    const at = all.indexOf(event.target)
    const next = all[at + step]
    if (next) next.focus()
    event.preventDefault()
  }
}
"""


def colored_text(
    values: xr.DataArray,
    tokens: Sequence[str],
    here: int,
    chosen: Callable[[int], None],
    *,
    key: str,
) -> None:
    """The text on the colors of a signal; a click chooses a token.

    Args:
        values: Over (token).
        tokens: Their strings.
        here: The token that is framed; the stretch of text around it is shown.
        chosen: Called with the token of a click, before the page runs again.
        key: Of the widget.
    """
    first = max(0, min(here - LIMIT // 2, len(tokens) - LIMIT))
    scale = color_scale(values)
    shown = values.values[first : first + LIMIT].astype(np.float64)
    letters = color_classes(shown, color_span(values, scale), scale)
    palette = theme.PALETTES[mode()].classes(STEPS)
    words = list(tokens[first : first + LIMIT])

    def choose() -> None:
        place = st.session_state[key]["token"]
        if place is not None:
            chosen(int(place))

    _mount(
        key=key,
        data={
            "tokens": [visible(word, 40) for word in words],
            "titles": [
                f"{first + i} \u00b7 {visible(word, 60)} \u00b7 {_said(v, values)}"
                for i, (word, v) in enumerate(zip(words, shown, strict=True))
            ],
            "letters": letters,
            "breaks": [i for i, word in enumerate(words) if "\n" in word],
            "colors": dict(zip("0123456789ab", palette, strict=True)),
            "here": here,
            "first": first,
            "label": f"{len(words)} tokens; arrow keys move, Enter chooses",
        },
        on_token_change=choose,
    )


def _said(value: float, values: xr.DataArray) -> str:
    return f"{number(value)} {unit(values)}" if np.isfinite(value) else "no value"


_mount = component("interp.colored_text", css=_CSS, js=_JS)
