"""The explorer's frame: what every page shares. Streamlit runs `script.py`."""
