"""Stores: what survives an interruption, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
import zarr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.errors import StorageError

TEXT = "w3 w9 w4 w9 w7 w3 w9 w5"


@pytest.fixture
def model():
    return interp.load(tiny("gemma3")[0], tokenizer=tiny_tokenizer())


def files_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def interrupt_after(n: int):
    def progress(done, total):
        if done == n:
            raise KeyboardInterrupt

    return progress


def test_a_stored_trace_equals_the_one_in_memory(model, tmp_path):
    stored = interp.trace(model, TEXT, out=tmp_path / "t.zarr")
    memory = interp.trace(model, TEXT)
    for name, node in memory.children.items():
        xr.testing.assert_equal(
            node.to_dataset().reset_coords(drop=True),
            stored[name].to_dataset().load().reset_coords(drop=True),
        )
        for array in node.variables:
            assert array in stored[name].variables
            for key, value in node[array].attrs.items():
                assert stored[name][array].attrs[key] == value
    assert stored.attrs["complete"]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_is_readable_and_resumes_to_equal_bytes(
    model, tmp_path, after
):
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    interp.trace(model, TEXT, out=whole)
    with pytest.raises(KeyboardInterrupt):
        interp.trace(model, TEXT, out=broken, progress=interrupt_after(after))
    so_far = interp.open_trace(broken)
    assert not so_far.attrs["complete"]
    entropy = so_far["self"]["entropy"]
    assert entropy.isel(layer=slice(0, after)).notnull().all()
    assert entropy.isel(layer=slice(after, None)).isnull().all()
    interp.trace(model, TEXT, out=broken)
    assert files_of(broken) == files_of(whole)


def test_a_complete_store_is_not_computed_again(model, tmp_path):
    first = interp.trace(model, TEXT, out=tmp_path / "t.zarr")
    calls = []
    again = interp.trace(
        model, TEXT, out=tmp_path / "t.zarr", progress=lambda *step: calls.append(step)
    )
    assert calls == []
    xr.testing.assert_equal(first["self"]["lse"], again["self"]["lse"])


def test_another_run_s_store_is_refused_and_kept(model, tmp_path):
    path = tmp_path / "t.zarr"
    interp.trace(model, TEXT, out=path)
    before = files_of(path)
    with pytest.raises(StorageError, match=r"another run.*input_hash"):
        interp.trace(model, "w3 w4", out=path)
    assert files_of(path) == before
    interp.trace(model, "w3 w4", out=path, resume=False)
    assert interp.open_trace(path).attrs["n_tokens"] == 2


@pytest.mark.parametrize("damage", ["truncate", "delete", "alter"])
def test_damaged_data_are_noticed_and_repaired(model, tmp_path, damage):
    path = tmp_path / "t.zarr"
    interp.trace(model, TEXT, out=path)
    wanted = files_of(path)
    chunk = path / "self" / "entropy" / "c" / "1" / "0" / "0"
    data = chunk.read_bytes()
    if damage == "delete":
        chunk.unlink()
    elif damage == "truncate":
        chunk.write_bytes(data[: len(data) // 2])
    else:
        chunk.write_bytes((path / "self/entropy/c/2/0/0").read_bytes())
    with pytest.raises(StorageError, match=r"damaged: layer 1 of 'self'"):
        interp.open_trace(path)
    header = path / "zarr.json"
    attrs = json.loads(header.read_text())
    attrs["attributes"].pop("complete")
    header.write_text(json.dumps(attrs))
    interp.trace(model, TEXT, out=path)
    repaired = files_of(path)
    assert repaired["self/entropy/c/1/0/0"] == wanted["self/entropy/c/1/0/0"]
    assert interp.open_trace(path).attrs["complete"]


def test_what_is_no_store_is_refused(model, tmp_path):
    with pytest.raises(StorageError, match="no store"):
        interp.open_trace(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="not a trace store"):
        interp.open_trace(tmp_path / "folder")
    with pytest.raises(StorageError, match="not a trace store"):
        interp.trace(model, TEXT, out=tmp_path / "folder")
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    zarr.open_group(tmp_path / "foreign", mode="w")
    with pytest.raises(StorageError, match="not written by interp"):
        interp.open_trace(tmp_path / "foreign")
    cut = tmp_path / "cut.zarr"
    interp.trace(model, TEXT, out=cut)
    header = cut / "zarr.json"
    header.write_text(header.read_text()[:40])
    with pytest.raises(StorageError, match="cut off"):
        interp.open_trace(cut)


def test_a_store_that_cannot_be_written_says_so(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        interp.trace(model, TEXT, out=tmp_path / "file" / "t.zarr")


FULL = """
import resource, sys
import interp
from tiny_models import tiny, tiny_tokenizer
model = interp.load(tiny("gemma3")[0], tokenizer=tiny_tokenizer())
def fill(done, total):
    if done == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    interp.trace(model, sys.argv[2], out=sys.argv[1], progress=fill)
except interp.errors.StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes")
def test_a_full_disk_loses_nothing_that_was_finished(model, tmp_path):
    path = tmp_path / "t.zarr"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), TEXT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert "cannot be written" in done.stdout, done.stderr[-2000:]
    entropy = interp.open_trace(path)["self"]["entropy"]
    assert entropy.isel(layer=slice(0, 2)).notnull().all()
    interp.trace(model, TEXT, out=path)
    whole = tmp_path / "whole.zarr"
    interp.trace(model, TEXT, out=whole)
    assert files_of(path).keys() == files_of(whole).keys()
    shutil.rmtree(path)
