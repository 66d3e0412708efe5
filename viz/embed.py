"""Figures, data and code inside one HTML file, such that no content can act.

A data block is JSON in which no character can close a tag. The page's policy allows
exactly the scripts whose hashes it lists and no connection at all.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field

import plotly.graph_objects as go
from markupsafe import Markup

from interp.viz import theme

_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def safe_json(value: object) -> Markup:
    """JSON that may stand inside a script element, whatever strings it holds."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def script_hash(source: str) -> str:
    """The source expression of a content security policy that allows this script."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@dataclass
class FigureBook:
    """The page's figures: a placeholder where each stands, all data in one block."""

    specs: dict[str, str] = field(default_factory=dict)

    def add(self, figure: go.Figure, label: str, kind: str = "wide") -> Markup:
        """Placeholder of a figure.

        Args:
            figure: Drawn without its title and template; the page has its own.
            label: What the figure shows, for those who do not see it.
            kind: Class of the placeholder: "wide", or "half" for small multiples.
        """
        name = f"figure-{len(self.specs)}"
        top = 8 if "half" in kind else 28
        height = int(figure.to_dict()["layout"].get("height", 320)) - 48 + top
        bare = go.Figure(figure)
        bare.update_layout(template=None, title=None, margin_t=top, height=height)
        self.specs[name] = str(bare.to_json())
        return Markup(
            '<div class="scroll"><div class="figure {}" id="{}" role="img" '
            'aria-label="{}" style="height:{}px"></div></div>'
        ).format(kind, name, label, height)

    def json(self) -> Markup:
        """All figures, and the templates of both modes."""
        templates = {
            mode: theme.template(mode).to_plotly_json() for mode in theme.PALETTES
        }
        figures = ",".join(f'"{name}":{spec}' for name, spec in self.specs.items())
        return safe_json(
            f'{{"templates":{json.dumps(templates)},"figures":{{{figures}}}}}'
        )


def style_variables() -> Markup:
    """Colors of the page as CSS variables, for light and dark."""

    def block(palette: theme.Palette) -> str:
        names = ("paper", "card", "ink", "muted", "rule", "accent", "missing")
        rules = [f"--{name}:{getattr(palette, name)}" for name in names]
        rules += [f"--s{i:x}:{color}" for i, (color, _) in enumerate(palette.classes())]
        return ";".join(rules)

    light, dark = block(theme.LIGHT), block(theme.DARK)
    return Markup(
        f":root{{{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )
