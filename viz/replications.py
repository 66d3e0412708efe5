"""The table of published claims that were measured again, as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.probes.replications.claim import UNTESTED, Claim, Evidence, verdict
from interp.viz.numbers import interval, number

RULE = """\
What decides is computed, not written: of each measured quantity the claim's range is
stated before measuring. It **agrees** if its whole 95 % bootstrap interval lies in the
range, **disagrees** if the whole interval lies outside, and is **open** otherwise. A
claim *holds* if all of its quantities agree, and *holds in part* if some do. Where none
agrees, it *does not hold here* if all disagree, and else it *cannot be tested here*, as
where the model cannot be asked. Ranges come from the paper's figures; where it gives
none, the range is ours: what the words of the claim need at least."""


@dataclass(frozen=True)
class Tested:
    """A claim, and what was measured."""

    claim: Claim
    model: str
    evidence: tuple[Evidence, ...]
    why: str
    """Why nothing was measured; empty if something was."""
    seconds: float
    """That it took."""

    @property
    def verdict(self) -> str:
        """By the rule; what could not be measured cannot be tested."""
        return UNTESTED if self.why else verdict(self.evidence)


def render(
    title: str,
    tested: Sequence[Tested],
    *,
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> str:
    """The page, as Markdown.

    Args:
        title: Of the page.
        tested: Claims, in order.
        command: What makes the page again.
        versions: Of what the numbers come from.
    """
    made = f"Made by `{command}`" if command else "Made"
    by = ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
    parts = [f"# {title}", f"{made}{f' with {by}' if by else ''}.", RULE]
    parts.append("\n".join(_overview(tested)))
    parts += [_section(each) for each in tested]
    return "\n\n".join(parts) + "\n"


def _overview(tested: Sequence[Tested]) -> list[str]:
    """Claim and verdict, one line each."""
    lines = ["| claim | source | measured on | verdict |", "|---|---|---|---|"]
    for each in tested:
        link = f"[{_cell(each.claim.statement)}](#{each.claim.name})"
        source = _cell(each.claim.source)
        lines.append(f"| {link} | {source} | {each.model} | **{each.verdict}** |")
    return lines


def _section(tested: Tested) -> str:
    """The claim, the paper's figures, ours, and how they were made."""
    claim = tested.claim
    lines = [
        f'<a id="{claim.name}"></a>',
        f"## {claim.name.replace('_', ' ').capitalize()}: {tested.verdict}",
        f"{claim.statement} ({claim.source})",
        f"**Published.** {claim.published}.",
        f"**Here**, on {tested.model}. {claim.method}",
    ]
    if tested.why:
        return "\n\n".join([*lines, f"Not measured: {_cell(tested.why)}"])
    table = [
        "| measured | value | 95 % interval | unit | over | claimed | |",
        "|---|---:|---:|---|---|---|---|",
    ]
    for each in tested.evidence:
        cells = (
            _cell(each.what),
            number(each.value),
            interval(each.low, each.high),
            each.unit,
            each.over,
            _range(each),
            AGREES[each.agrees],
        )
        table.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([*lines, "\n".join(table)])


AGREES = {True: "agrees", False: "disagrees", None: "open"}


def _range(evidence: Evidence) -> str:
    """The claimed range in words."""
    bounds = []
    if evidence.least is not None:
        bounds.append(f"at least {number(evidence.least)}")
    if evidence.most is not None:
        bounds.append(f"at most {number(evidence.most)}")
    return ", ".join(bounds)


def _cell(text: str) -> str:
    """Text that breaks no table and holds no markup."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(plain.split())
