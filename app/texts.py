"""What the command line is given as text: files to read, names to look up."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from interp.capture import Capture, TokenEdges
from interp.errors import InputError
from interp.kernels.definitions import STATISTICS
from interp.tasks.reading import SHIPPED, read_text, shipped


def read_texts(paths: Iterable[Path] | None) -> dict[str, str]:
    """Texts by name; the shipped one if there are no paths.

    Raises:
        InputError: A file is missing, empty, or not UTF-8.
    """
    if not paths:
        return {SHIPPED: shipped()}
    texts: dict[str, str] = {}
    for path in paths:
        name = path.name if path.name not in texts else str(path)
        texts[name] = read_text(path)
    return texts


def parse_statistics(names: list[str] | None) -> Capture:
    """What a trace records, from the names of its arrays.

    Raises:
        InputError: A name that no array has, with the nearest one.
    """
    if names is None:
        return Capture()
    known = [*STATISTICS, "residual"]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)[0]
            raise InputError(
                f"No statistic is called {name!r}. Did you mean {near!r}? There are "
                f"{', '.join(known)}."
            )
    kinds = dict.fromkeys(
        STATISTICS[n] for n in names if n not in ("residual", "edges")
    )
    return Capture(
        tuple(kind() for kind in kinds),
        TokenEdges() if "edges" in names else None,
        residual="residual" in names,
    )
