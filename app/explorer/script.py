"""What Streamlit runs for every session: the navigation, and one page."""

from functools import partial

import streamlit as st

from interp.app.explorer.frame import show
from interp.app.explorer.style import ICON
from interp.app.pages import PAGES

st.set_page_config(page_title="interp explorer", page_icon=ICON, layout="wide")
# Pages have no icons: Streamlit would fetch the icon of a tab from another server.
st.navigation(
    [
        st.Page(
            partial(show, page),
            title=page.title,
            url_path=page.path,
            default=page is PAGES[0],
        )
        for page in PAGES
    ]
).run()
