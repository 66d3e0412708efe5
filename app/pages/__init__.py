"""Pages of the explorer, in the order of the navigation."""

from interp.app.pages import (
    ablate,
    compare,
    cross_attention,
    head,
    long_map,
    overview,
    tokens,
)

PAGES = (
    overview.PAGE,
    head.PAGE,
    tokens.PAGE,
    long_map.PAGE,
    ablate.PAGE,
    compare.PAGE,
    cross_attention.PAGE,
)
