"""`interp doctor --families`: which families of transformers can be reached, and how.

Each is a small random model of the family's own code, examined as a model of the user's
would be, without the doors of other packages.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import transformers

from interp.app.bench.table import markdown
from interp.app.progress import Progress
from interp.doctor import examine
from interp.errors import InputError, InterpError
from interp.families import Family, families, small
from interp.models import load

COLUMNS = ("family", "for", "door", "sites", "parity:", "says")

DOORS = {"attention interface": "interface", "torch functions": "torch functions"}
"""What the table calls the ways into an attention module."""

NOTE = (
    "small random models, one sample, float32 on a CPU. Parity is the largest error of "
    "any statistic, as a share of what is allowed: twice the error of the family's own "
    "eager attention in float32 (four copies that differ in the last bit of each "
    "weight), plus one rounding of the largest value, both against float64; up to 1 is "
    "as precise as eager. `interface` is transformers' attention "
    "interface, with nothing of size query x key; `torch functions` sees a family that "
    "computes attention by itself, which builds its own maps."
)


@dataclass(frozen=True)
class _Row:
    family: Family
    door: str = ""
    sites: str = ""
    parity: float = float("nan")
    says: str = ""
    agrees: bool = True

    @property
    def cells(self) -> list[str]:
        parity = "" if self.parity != self.parity else f"{self.parity:.2f}"
        said = self.says.replace("|", "/")
        own = f"`{self.family.name}`"
        return [own, self.family.kind, self.door, self.sites, parity, said]


def families_page(
    names: Sequence[str], progress: Progress, command: str
) -> tuple[str, bool]:
    """The table of families in Markdown, and whether all that are reached agree.

    Args:
        names: Of families, or `all`.
        progress: Told of every family.
        command: How to make the table again.

    Raises:
        InputError: There is no such family.
    """
    chosen = _chosen(names)
    rows, not_made = [], {}
    for done, family in enumerate(chosen):
        progress("families", done, len(chosen))
        try:
            rows.append(_row(family))
        except _NotMadeError as error:
            not_made[f"`{family.name}`"] = str(error)
        gc.collect()
    progress("families", len(chosen), len(chosen))
    reached = sum(bool(row.door) for row in rows)
    table = markdown(
        "Families of transformers",
        command,
        f"transformers {transformers.__version__}; {NOTE} {len(rows)} families, "
        f"{reached} of them reached.",
        COLUMNS,
        [row.cells for row in rows],
        not_made,
    )
    return table.lstrip("\n"), all(row.agrees for row in rows)


class _NotMadeError(Exception):
    """No small model of a family can be made here; the text says why."""


def _chosen(names: Sequence[str]) -> list[Family]:
    known = {family.name: family for family in families()}
    if list(names) == ["all"]:
        return list(known.values())
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"--families names {unknown[0]!r}, which is no family of transformers "
            f"{transformers.__version__}. Name model types such as llama, or all."
        )
    return [known[name] for name in names]


def _row(family: Family) -> _Row:
    try:
        module, inputs = small(family)
    except InterpError as error:
        raise _NotMadeError(str(error)) from error
    try:
        model = load(module)
        tap = model.anatomy.capability("tap")
        if not tap.available:
            return _Row(family, says=tap.reason)
        found = examine(model, inputs, max_tokens=None, peers=False)
    except InterpError as error:
        return _Row(family, says=str(error))
    except Exception as error:  # one family does not stop the others
        said = " ".join(str(error).split())[:200]
        return _Row(family, says=f"{type(error).__name__}: {said}", agrees=False)
    eager, own = found.doors.to_dict("records")
    ways = [DOORS[way] for way in found.layers["door"].unique()]
    counts = found.layers["site"].value_counts(sort=False)
    sites = ", ".join(f"{name} {count}" for name, count in counts.items())
    if not own["works"]:
        return _Row(family, says=own["says"])
    said = [own["says"]] if own["says"] else []
    if not eager["works"]:
        said.append("held against the definitions in float64, without eager maps")
    parity = own["error"] / own["allowed"]
    return _Row(
        family, ", ".join(ways), sites, parity, "; ".join(said), bool(own["agrees"])
    )
