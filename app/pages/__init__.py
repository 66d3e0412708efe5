"""Pages of the explorer, in the order of the navigation."""

from interp.app.pages import ablate, compare, head, overview, tokens

PAGES = (overview.PAGE, head.PAGE, tokens.PAGE, ablate.PAGE, compare.PAGE)
