"""Thirty strings that want out of their place, as tokens of a text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tiny_models import tiny

import interp
from interp.capture import Capture

HOSTILE = (
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "<svg onload=window.hacked=1>",
    "<iframe src=javascript:window.hacked=1>",
    "<style>*{display:none}</style>",
    "</style>]]>",
    "<!-- ",
    "--><b>bold</b>",
    "<a href=javascript:window.hacked=1>link</a>",
    "[link](javascript:window.hacked=1)",
    "![image](https://example.org/x.png)",
    "**bold** _it_ `code` ~~no~~",
    "# heading",
    "| a | b |\n|---|---|",
    "$x^2$ $$y$$",
    ":red[red] :material/home: :smile:",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "%{z} %{customdata} <extra></extra>",
    "{{ 7*7 }} {% raw %} ${7*7}",
    "\u202eright to left",
    "\u200f\u200e\u2066\u2069",
    "\x00\x07\x1b[31mred\x1b[0m",
    "\n",
    "\r\n\t\u2028\u2029",
    "\ufeff\u00ad\u200b\u200d",
    "\ufffd\ufffe",
    "e\u0301\u0301\u0302\u0302\u0302 \u05e9\u05dc\u05d5\u05dd",
    "'; DROP TABLE tokens; --",
    "x" * 10_240,
)


def with_tokens(atlas: xr.DataTree, tokens: Sequence[str]) -> xr.DataTree:
    """An atlas whose text begins with these tokens, each with a word behind it."""
    text = atlas["text_0"].to_dataset()
    words = text["token_text"].values.copy()
    mixed = [word for token in tokens for word in (token, " word")]
    count = min(len(words), len(mixed))
    words[:count] = np.array(mixed[:count], dtype=object)
    atlas["text_0"] = xr.DataTree(text.assign_coords(token_text=("token", words)))
    return atlas


class Speaking:
    """A tokenizer whose vocabulary are these strings."""

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """A string for each row of one token."""
        return [HOSTILE[row[0] - 3] for row in rows]


def trace_of_hostile_tokens(out: Path) -> None:
    """A store of a tiny model's trace, with all that can be recorded."""
    ids = torch.arange(3, 3 + len(HOSTILE))[None]
    everything = Capture(vectors=True)
    model = tiny("llama")[0]
    interp.trace(model, ids, tokenizer=Speaking(), capture=everything, out=out)
