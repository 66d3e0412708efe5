"""What the command line is given as text: files to read, names to look up."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from interp.capture import Capture, TokenEdges
from interp.errors import InputError
from interp.kernels.definitions import STATISTICS

SHIPPED = "lighthouse.txt"
"""The text that is used when none is given."""


def read_texts(paths: Iterable[Path] | None) -> dict[str, str]:
    """Texts by name; the shipped one if there are no paths.

    Raises:
        InputError: A file is missing, empty, or not UTF-8.
    """
    if not paths:
        return {SHIPPED: (files("interp") / "data" / SHIPPED).read_text("utf-8")}
    texts: dict[str, str] = {}
    for path in paths:
        name = path.name if path.name not in texts else str(path)
        texts[name] = _read(path)
    return texts


def _read(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(
            f"The text {path} does not exist. Give the path of a UTF-8 text file."
        ) from error
    except IsADirectoryError as error:
        raise InputError(
            f"The text {path} is a folder. Give the path of a UTF-8 text file."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"The text {path} is not UTF-8: byte {error.start} cannot be read. Convert "
            "it, for example with iconv."
        ) from error
    except OSError as error:
        raise InputError(
            f"The text {path} cannot be read: {error.strerror}. Check its path and "
            "permissions."
        ) from error
    if not text.strip():
        raise InputError(f"The text {path} is empty. Give at least one word.")
    return text


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
