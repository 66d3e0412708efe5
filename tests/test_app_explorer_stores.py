"""Stores that may be opened: named or uploaded, and nothing that could act."""

import io
import json
import zipfile

import numpy as np
import pytest
import xarray as xr
import zarr
from hand_atlas import hand_atlas

from interp.app.explorer import readings, stores
from interp.app.folder import save
from interp.errors import StorageError


@pytest.fixture
def atlas(tmp_path):
    folder = tmp_path / "atlas"
    save(hand_atlas(layers=3, heads=2, kv_heads=1, tokens=60), folder / "atlas.zarr")
    return folder


def zipped(files):
    """An upload that holds files by name."""
    upload = io.BytesIO()
    with zipfile.ZipFile(upload, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    upload.seek(0)
    return upload


def folder_zipped(folder):
    found = {
        str(each.relative_to(folder.parent)): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }
    return zipped(found)


def test_an_atlas_is_opened_by_its_folder_or_its_store(atlas):
    for path in (atlas, atlas / "atlas.zarr"):
        opened = stores.open_store(path)
        assert opened.atlas is not None
        assert "heads" in opened.atlas.children


def test_a_store_says_its_texts(atlas):
    assert readings.nodes_of(atlas) == {"lighthouse-0 (text_0)": "text_0"}


def test_an_atlas_without_traces_is_read_as_far_as_it_goes(atlas):
    reading = readings.stored(atlas, "text_0")
    assert reading.heads["sinks"].shape == (3, 2)
    with pytest.raises(LookupError, match="traces"):
        reading.require_trace()


def test_a_deleted_store_is_told(tmp_path):
    with pytest.raises(StorageError, match="not there"):
        stores.open_store(tmp_path / "gone")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StorageError):
        stores.open_store(tmp_path)


def test_a_damaged_atlas_is_told(atlas):
    for path in (atlas / "atlas.zarr" / "heads").rglob("zarr.json"):
        path.write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        stores.open_store(atlas)


def test_an_uploaded_store_is_opened(atlas, tmp_path):
    path = stores.unpack(folder_zipped(atlas), tmp_path / "new")
    assert stores.open_store(path).atlas is not None


def test_an_upload_that_is_no_zip_is_refused(tmp_path):
    with pytest.raises(StorageError, match="zip"):
        stores.unpack(io.BytesIO(b"hello"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"])
def test_an_upload_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(StorageError, match="leaves its folder"):
        stores.unpack(zipped({name: "evil"}), tmp_path / "new")
    assert not (tmp_path / "evil.txt").exists()


def test_an_upload_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "UNPACKED", 0)
    with pytest.raises(StorageError, match="MiB"):
        stores.unpack(zipped({"a": "b"}), tmp_path / "new")


def test_a_store_with_pickled_data_is_never_read(atlas):
    header = next((atlas / "atlas.zarr").rglob("sinks/zarr.json"))
    told = json.loads(header.read_text())
    told["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    header.write_text(json.dumps(told))
    with pytest.raises(StorageError, match=r"numcodecs\.pickle"):
        stores.open_store(atlas)


def test_a_pickle_codec_within_another_is_found(atlas):
    header = next((atlas / "atlas.zarr").rglob("sinks/zarr.json"))
    told = json.loads(header.read_text())
    inner = [{"name": "numcodecs.pickle"}]
    told["codecs"] = [
        {"name": "sharding_indexed", "configuration": {"codecs": inner}},
    ]
    header.write_text(json.dumps(told))
    with pytest.raises(StorageError, match=r"numcodecs\.pickle"):
        stores.open_store(atlas)


def test_a_store_of_zarr_2_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    group["x"] = np.zeros(3)
    with pytest.raises(StorageError, match="version 2"):
        stores.open_store(tmp_path / "old.zarr")


def test_our_own_stores_use_plain_codecs(atlas, tmp_path):
    stores.require_plain(atlas / "atlas.zarr")
    tokens = xr.Dataset({"x": ("t", np.array(["a", "b"], dtype=object))})
    tokens.to_zarr(tmp_path / "strings.zarr", consolidated=False)
    stores.require_plain(tmp_path / "strings.zarr")
