"""A table of measurements in Markdown, and what it was measured on."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "interp",
    "torch",
    "triton",
    "transformers",
    "transformer-lens",
    "nnsight",
    "flash-colsum",
    "flag-attn",
)
"""Whose versions the table tells, where they are installed."""


def markdown(
    title: str,
    command: str,
    note: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    not_run: Mapping[str, str] | None = None,
) -> str:
    """The section of one run.

    Args:
        title: What was measured, on what.
        command: How to make the table again.
        note: What the numbers are.
        columns: Headings; one that ends in a colon aligns to the right.
        rows: Cells; a short row is filled up with empty ones.
        not_run: What is missing from the table, and why.
    """
    lines = [
        f"\n## {title}",
        "",
        f"`{command}`: {_versions()}; {note}",
        "",
        _row([column.removesuffix(":") for column in columns]),
        "|" + "|".join("---:" if c.endswith(":") else "---" for c in columns) + "|",
    ]
    lines += [_row([*row, *[""] * (len(columns) - len(row))]) for row in rows]
    if not_run:
        lines += ["", "Not run:", ""]
        lines += [f"- {what}: {why}" for what, why in not_run.items()]
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    found.append(f"Python {platform.python_version()}")
    return ", ".join([*found, platform.system()])


def device_name(device: object = "cpu") -> str:
    """Of the GPU, or of this machine's processor."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(str(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
