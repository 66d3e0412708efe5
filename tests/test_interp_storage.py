"""Stores: what survives an interruption, and what is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
import zarr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.capture import Capture, TokenEdges
from interp.errors import StorageError
from interp.kernels.definitions import Distance, Entropy, MaxMass

TEXT = "w3 w9 w4 w9 w7 w3 w9 w5"
FEW = Capture((Entropy(), MaxMass(), Distance()), TokenEdges())


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
    assert {**memory.attrs, "complete": True} == stored.attrs
    assert set(memory.children) == set(stored.children)
    for name, node in memory.children.items():
        xr.testing.assert_identical(node.to_dataset(), stored[name].to_dataset().load())
        for array, wanted in node.variables.items():
            assert stored[name][array].dtype == wanted.dtype
    picked = stored["self"]["edges"].sel(edge="previous", layer=1)
    assert picked.equals(memory["self"]["edges"].sel(edge="previous", layer=1))


def test_a_stored_batch_equals_the_one_in_memory(model, tmp_path):
    stored = interp.trace(model, [TEXT, "w3 w9"], out=tmp_path / "t.zarr")
    memory = interp.trace(model, [TEXT, "w3 w9"])
    for name, node in memory.children.items():
        xr.testing.assert_identical(node.to_dataset(), stored[name].to_dataset().load())


def test_writing_and_reading_a_store_warns_of_nothing(model, tmp_path, recwarn):
    interp.trace(model, TEXT, out=tmp_path / "t.zarr")
    interp.open_trace(tmp_path / "t.zarr").load()
    assert not recwarn.list


@pytest.mark.parametrize("after", [1, 2, 4])
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


def test_an_interrupted_encoder_and_decoder_resume_to_equal_bytes(tmp_path):
    module, inputs = tiny("bart")
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    interp.trace(module, inputs, out=whole, capture=FEW)
    with pytest.raises(KeyboardInterrupt):
        interp.trace(
            module, inputs, out=broken, capture=FEW, progress=interrupt_after(5)
        )
    interp.trace(module, inputs, out=broken, capture=FEW)
    assert files_of(broken) == files_of(whole)
    assert "cross" in interp.open_trace(broken).attrs["skipped"]


@pytest.mark.parametrize("call", [1, 2])
def test_a_run_that_ends_while_it_makes_room_resumes_to_equal_bytes(
    model, tmp_path, monkeypatch, call
):
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    interp.trace(model, TEXT, out=whole, capture=FEW)
    calls, write = [], xr.Dataset.to_zarr

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return write(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_zarr", interrupted)
        with pytest.raises(KeyboardInterrupt):
            interp.trace(model, TEXT, out=broken, capture=FEW)
    so_far = interp.open_trace(broken)
    assert not so_far.attrs["complete"]
    assert len(so_far.children) == call - 1
    interp.trace(model, TEXT, out=broken, capture=FEW)
    assert files_of(broken) == files_of(whole)


CHUNK, LABELS = "self/entropy/c/1/0/0", "self/query_token/c/0"
DAMAGES = {
    "a truncated chunk": (CHUNK, lambda data: data[: len(data) // 2], "layer 1 of"),
    "a missing chunk": (CHUNK, None, "layer 1 of 'self'"),
    "an altered chunk": (CHUNK, lambda data: data[:-1] + b"!", "layer 1 of 'self'"),
    "truncated labels": (LABELS, lambda data: data[: len(data) // 2], "'self'"),
    "missing labels": (LABELS, None, "'self'"),
    "an array's header": ("self/entropy/zarr.json", lambda data: data[:50], "'self'"),
    "a missing array": ("self/entropy/zarr.json", None, "'self'"),
    "a node's header": ("residual/zarr.json", lambda data: data[:50], "'residual'"),
}


@pytest.mark.filterwarnings("ignore:Object at")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_noticed_and_repaired(model, tmp_path, damage):
    path = tmp_path / "t.zarr"
    interp.trace(model, TEXT, out=path, capture=FEW)
    wanted = files_of(path)
    name, change, message = DAMAGES[damage]
    if change is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(change(wanted[name]))
    with pytest.raises(StorageError, match=rf"damaged: .*{message}.*resume"):
        interp.open_trace(path)
    repaired = interp.trace(model, TEXT, out=path, capture=FEW)
    assert repaired.attrs["complete"]
    assert files_of(path) == wanted


def test_a_missing_node_is_noticed_and_repaired(model, tmp_path):
    path = tmp_path / "t.zarr"
    interp.trace(model, TEXT, out=path, capture=FEW)
    wanted = files_of(path)
    shutil.rmtree(path / "self")
    with pytest.raises(StorageError, match="damaged: 'self'"):
        interp.open_trace(path)
    interp.trace(model, TEXT, out=path, capture=FEW)
    assert files_of(path) == wanted


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
    for use in (interp.open_trace, lambda path: interp.trace(model, TEXT, out=path)):
        with pytest.raises(StorageError, match="not written by interp"):
            use(tmp_path / "foreign")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="not a trace store"):
        interp.trace(model, TEXT, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    cut = tmp_path / "cut.zarr"
    interp.trace(model, TEXT, out=cut)
    header = cut / "zarr.json"
    whole = header.read_text()
    header.write_text(whole[:40])
    with pytest.raises(StorageError, match="cut off"):
        interp.open_trace(cut)
    header.write_text(whole.replace('"interp_format": 1', '"interp_format": 99'))
    with pytest.raises(StorageError, match="format 99"):
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
    assert files_of(path) == files_of(whole)
