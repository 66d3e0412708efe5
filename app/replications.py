"""`interp report` on a file of claims: what was published, measured again."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from interp.app.folder import (
    digest,
    known_run,
    versions,
    write_run,
    write_whole,
    writing,
)
from interp.app.options import typed
from interp.app.progress import Progress
from interp.app.study_file import StudyFile, placed
from interp.errors import InputError, NotCapturedError, UnsupportedModelError
from interp.models import Model, load
from interp.probes.replications.claim import Claim, Evidence, plain
from interp.probes.replications.registry import claimed
from interp.viz.replications import Tested, render

TABLE, PAGE, RUNS = "replications.csv", "replications.md", "runs"
CLAIM = "claim"
"""The key that tells such a file from a study of ablations."""

KEYS = {"title": str, "model": str, CLAIM: list, "dtype": str}
"""What such a file may say."""

CANNOT = (InputError, UnsupportedModelError, NotCapturedError)
"""What says that a model cannot be asked."""


@dataclass(frozen=True)
class Replications:
    """What a file of claims says."""

    path: Path
    title: str
    claims: tuple[tuple[str, Claim], ...]
    """Each with the model that it is tested on."""
    dtype: str | None
    content_hash: str


def read_replications(file: StudyFile) -> Replications:
    """What a file of claims asks for.

    Raises:
        InputError: It names no model or claim, or a claim or knob that there is not.
    """
    said = file.said
    file.require(said, KEYS)
    claims = []
    for entry in said[CLAIM]:
        if not isinstance(entry, dict):
            raise file.wrong(CLAIM, "is no table", _LIKE)
        given = dict(entry)
        model = given.pop("model", said.get("model"))
        if not isinstance(model, str):
            raise InputError(
                f"The study {file.path} names no model for {given.get(CLAIM)}. Write "
                'model = "smollm2-135m", above the claims.'
            )
        try:
            claims.append((placed(file.path.parent, model), claimed(given)))
        except InputError as error:
            raise InputError(f"The study {file.path}: {error}") from error
    if not claims:
        raise InputError(f"The study {file.path} holds no claim. {_LIKE}")
    names = [claim.name for _, claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"The study {file.path} tests {name} twice. Test each claim once, and "
                "others in another file."
            )
    return Replications(
        path=file.path,
        title=said.get("title", file.path.stem),
        claims=tuple(claims),
        dtype=said.get("dtype"),
        content_hash=digest(file.text),
    )


def make(asked: Replications, out: Path, device: str, progress: Progress) -> Path:
    """Test every claim, or those that an earlier run has not; write page and table.

    Returns:
        The page, Markdown.

    Raises:
        InputError: The folder holds something else, or a model cannot be loaded.
        StorageError: It cannot be written.
    """
    known_run(out, keys=("replications",))
    record = {"replications": asked.path.name, "study_hash": asked.content_hash}
    tested: list[Tested] = []
    with writing(out):
        write_run(out, {**record, "finished": False})
        models: dict[str, Model] = {}
        for name, claim in asked.claims:
            if name not in models:
                models = {
                    name: load(
                        name,
                        device=device,
                        dtype=asked.dtype,
                        progress=lambda step: progress(step, 0, 0),
                    )
                }
            tested.append(_tested(models[name], claim, out, progress))
        write_whole(out / TABLE, _table(tested).to_csv(index=False))
        write_whole(
            out / PAGE,
            render(asked.title, tested, command=typed(), versions=versions()),
        )
        write_run(
            out,
            {
                **record,
                "finished": True,
                "command": typed(),
                "versions": versions(),
                "seconds": {each.claim.name: each.seconds for each in tested},
            },
        )
    return out / PAGE


def _tested(model: Model, claim: Claim, out: Path, progress: Progress) -> Tested:
    """What a claim's evidence is, from its file if it is there."""
    own = {
        "claim": claim.name,
        "model": model.name,
        "model_hash": model.content_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "options": {f.name: plain(getattr(claim, f.name)) for f in fields(claim)},
    }
    path = out / "claims" / f"{claim.name}.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text("utf-8"))
    if any(known.get(key) != value for key, value in own.items()):
        known = own | _measured(model, claim, out / RUNS, progress)
        write_whole(path, json.dumps(known, indent=2) + "\n")
    return Tested(
        claim,
        model.name,
        tuple(Evidence(**each) for each in known["evidence"]),
        known["why"],
        known["seconds"],
    )


def _measured(
    model: Model, claim: Claim, runs: Path, progress: Progress
) -> dict[str, Any]:
    """The evidence, or why there is none."""
    started = time.perf_counter()
    evidence, why = [], ""
    try:
        found = claim.measure(model, folder=runs, progress=progress)
        evidence = [asdict(each) for each in found]
    except CANNOT as error:
        why = " ".join(str(error).split())
    seconds = round(time.perf_counter() - started, 1)
    return {"evidence": evidence, "why": why, "seconds": seconds}


def _table(tested: list[Tested]) -> pd.DataFrame:
    """A row for each measured quantity; one for a claim that has none."""
    rows = []
    for each in tested:
        own = {
            "claim": each.claim.name,
            "model": each.model,
            "source": each.claim.source,
            "verdict": each.verdict,
        }
        parts = [asdict(e) | {"agrees": e.agrees} for e in each.evidence] or [{}]
        rows += [own | part for part in parts]
    return pd.DataFrame(rows)


_LIKE = 'Write [[claim]], and below it claim = "first_token_sinks".'
