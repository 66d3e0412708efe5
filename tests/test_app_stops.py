"""Commands that are stopped: the same command then finishes, to the same bytes.

Stops follow one another in one folder, from the first step of a command to its last:
each run goes on with what the stopped one before it has left, and the end is compared.
"""

import json
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import xarray as xr
from command_line import (
    PROGRAM,
    copy,
    files_of,
    hears_ctrl_c,
    made,
    only_line,
    refused,
    run,
    save,
    says,
    words,
    write_words,
)

import interp
from interp import storage
from interp.app import ablate as app_ablate
from interp.app import atlas as app_atlas
from interp.app import influence as app_influence
from interp.interventions.log import Log

TASKS = (
    *("--task", "nll"),
    *("--task", "{task = 'repeated', block = 8, copies = 2, seeds = [0, 1, 2]}"),
)
NAMES = ("atlas", "ablate", "influence")

COMPARED = {
    "atlas": ("atlas.csv",),
    "ablate": ("ablation.csv", "index.html"),
    "influence": ("influence.csv", "kept.jsonl", "losses.jsonl"),
}
"""What has to be the same after a stop; pages name their folder."""

PAGE = {"atlas": "index.html", "ablate": "index.html", "influence": "influence.csv"}
"""What a command prints the path of."""

STOPS = {
    "atlas": [
        (app_atlas, "write_run", 0),
        (storage.Store, "create", 0),
        (xr.Dataset, "to_zarr", 0),
        (storage.Store, "write", 0),
        (storage.Store, "write", 1),
        (storage.Store, "finish", 0),
        (app_atlas, "save", 0),
        (xr.DataTree, "to_zarr", 0),
        (app_atlas, "to_table", 0),
        (app_atlas, "write", 0),
        (app_atlas, "write_run", 1),
    ],
    "ablate": [
        (app_ablate, "write_run", 0),
        (Log, "add", 0),
        (Log, "add", 4),
        (app_ablate, "ablation_tree", 0),
        (app_ablate, "save", 0),
        (app_ablate, "write", 0),
        (app_ablate, "write_run", 1),
    ],
    "influence": [
        (app_influence, "write_run", 0),
        (Log, "add", 0),
        (Log, "add", 4),
        (app_influence, "ranked", 0),
        (app_influence, "write_whole", 1),
        (app_influence, "write_run", 1),
    ],
}
"""Where each command is interrupted, in the order of its steps: after so many calls."""

DISKS = {
    "atlas": [10, 500, 1_000, 2_500, 100_000],
    "ablate": [10, 300, 3_000, 100_000],
    "influence": [10, 1_000, 4_000],
}
"""Bytes that a file may have."""

LOST = [
    ("atlas", "atlas.csv"),
    ("ablate", "ablation.csv"),
    ("influence", "influence.csv"),
    ("influence", "kept.jsonl"),
]

PROCESSES = [
    ("atlas", "traces", "text_0.zarr/self/*/c/0", signal.SIGINT),
    ("ablate", "sweeps", "*", signal.SIGKILL),
    ("influence", ".", "losses.jsonl", signal.SIGKILL),
]
"""Commands that are stopped from outside once such a file is there: for an atlas that
of the first layer."""


@dataclass(frozen=True)
class Command:
    """A command without its folder, and what it makes when nothing stops it."""

    name: str
    arguments: tuple[object, ...]
    whole: Path

    def at(self, folder: Path) -> tuple[object, ...]:
        """The command with a folder."""
        return (*self.arguments, folder)

    def finishes(self, folder: Path) -> bool:
        """Whether it ends in that folder with the same as without a stop."""
        made(*self.at(folder))
        texts = (
            [
                (each / name).read_text("utf-8").replace(str(each), "")
                for name in COMPARED[self.name]
            ]
            for each in (folder, self.whole)
        )
        return next(texts) == next(texts)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stops")


@pytest.fixture(scope="module")
def known(place):
    """Each command as it is first asked for, run once."""
    llama, text = save(place, "llama"), write_words(place / "words.txt", 60)
    lines = [
        {"id": f"{n}", "domain": "ab"[n % 2], "text": words(10 + 3 * n, seed=n)}
        for n in range(6)
    ]
    corpus = place / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    arguments = {
        "atlas": (llama, "--text", text, "--detectors", "sinks"),
        "ablate": (llama, "--heads", "L0.H1", "--text", text, *TASKS, "--controls", 3),
        "influence": (llama, corpus, "--heads", "L0.H1,L1.H2", "--controls", 1),
    }
    found: dict[str, Command] = {}

    def of(name: str) -> Command:
        if name not in found:
            whole = place / name
            made_by = Command(name, (name, *arguments[name], "--out"), whole)
            assert made(*made_by.at(whole)) == str(whole / PAGE[name])
            found[name] = made_by
        return found[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_what_is_complete_is_left_as_it_is(name, known):
    command = known(name)
    before = files_of(command.whole)
    ended = run(*command.at(command.whole))
    assert (ended.code, ended.out) == (0, f"{command.whole / PAGE[name]}\n")
    assert says(ended.err, "complete")
    assert files_of(command.whole) == before


@pytest.mark.parametrize(("name", "lost"), LOST)
def test_a_lost_output_is_made_again(name, lost, known, tmp_path):
    command = known(name)
    lacking = copy(command.whole, tmp_path / "lacking")
    (lacking / lost).unlink()
    assert command.finishes(lacking)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full(name, known, tmp_path):
    command, out = known(name), tmp_path / "out"
    for n_bytes in DISKS[name]:
        with room(n_bytes):
            line = refused(*command.at(out))
        assert says(line, "File too large", str(out))
    assert command.finishes(out)


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c(name, known, tmp_path, monkeypatch):
    command, out = known(name), tmp_path / "out"
    for where, step, calls in STOPS[name]:
        with interrupted(monkeypatch, where, step, calls):
            ended = run(*command.at(out))
        assert (ended.code, ended.out) == (130, ""), step
        assert says(only_line(ended.err), "Interrupted", "run the same command")
        for store in (out / "traces").glob("*.zarr"):
            interp.open_trace(store)
        if name == "ablate":
            assert any(out.glob("sweeps/*")) == ((step, calls) != ("write_run", 0))
    assert command.finishes(out)


@pytest.mark.parametrize(("name", "folder", "pattern", "sent"), PROCESSES)
def test_a_signal_from_outside(name, folder, pattern, sent, known, tmp_path):
    command, out = known(name), tmp_path / "out"
    with subprocess.Popen(
        [*PROGRAM, *map(str, command.at(out))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    ) as process:
        while process.poll() is None and not any((out / folder).glob(pattern)):
            time.sleep(0.005)
        process.send_signal(sent)
        said, err = process.communicate()
    if sent == signal.SIGINT:
        assert (process.returncode, said) == (130, "")
        assert says(only_line(err), "Interrupted", "run the same command")
        interp.open_trace(out / "traces" / "text_0.zarr")
    else:
        assert process.returncode == -sent
    assert command.finishes(out)


@contextmanager
def room(n_bytes: int) -> Iterator[None]:
    """A disk on which no file may grow larger: a full one fails the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def interrupted(monkeypatch, where, step, calls) -> Iterator[None]:
    """Ctrl-C once a step was called so often."""
    done, own = [], getattr(where, step)

    def stopped(*args, **kwargs):
        done.append(step)
        if len(done) > calls:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, step, stopped)
        yield
