"""The shape of the repository: floors, links, packaging, light imports."""

import ast
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("kernels", "interventions", "probes", "viz", "app")
FLOORS = ("kernels", "core", "interventions", "probes", "viz", "app")
"""Each floor may import itself and what stands to its left."""

LINES_AT_MOST = 400
HEAVY = (
    "nnsight",
    "plotly",
    "streamlit",
    "transformer_lens",
    "triton",
    "typer",
)


def module_files() -> dict[str, Path]:
    """Import name of every module, and its file under its real path."""
    found = {}
    for folder in ("interp", *LINKED):
        prefix = () if folder == "interp" else ("interp",)
        for directory, folders, files in os.walk(ROOT / folder, followlinks=False):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for file in files:
                path = Path(directory, file)
                if path.suffix == ".py":
                    parts = (*prefix, *path.relative_to(ROOT).with_suffix("").parts)
                    found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = module_files()


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, also in functions and for typing only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & MODULES.keys()
            if node.module in MODULES and not names <= MODULES.keys():
                yield node.module


def floor(module: str) -> str:
    """The floor that a module stands on."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LINKED else "core"


def configuration() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(program: str, cwd: Path, *path: Path) -> str:
    """Run a program in a fresh interpreter that has cwd, then path, first."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONSAFEPATH": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_floor_above_its_own(module):
    allowed = FLOORS[: FLOORS.index(floor(module)) + 1]
    upward = {name for name in imported(MODULES[module]) if floor(name) not in allowed}
    assert not upward, f"{module} ({floor(module)}) imports {sorted(upward)}"


def test_no_module_imports_itself_through_others():
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_imports_are_absolute():
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


def test_no_file_is_longer_than_a_reader_can_hold():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*MODULES.values(), *tests]
    }
    assert not {name: n for name, n in lines.items() if n > LINES_AT_MOST}


def test_importing_interp_loads_nothing_heavy(tmp_path):
    loaded = python("import interp, sys; print(*sys.modules)", tmp_path).split()
    assert "interp" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("folder", LINKED)
def test_each_folder_is_linked_into_the_package(folder):
    link = ROOT / "interp" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"


def test_the_links_are_committed_as_links():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "interp"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    links = {
        line.split("\t")[1] for line in listed.splitlines() if line[:6] == "120000"
    }
    assert links == {f"interp/{folder}" for folder in LINKED}


@pytest.mark.parametrize(
    "path", ["kernels/__init__.py", "conftest.py", "tests/__init__.py"]
)
def test_a_file_that_would_shadow_another_package_is_absent(path):
    assert not (ROOT / path).exists()


def test_every_folder_with_modules_is_packaged():
    setuptools = configuration()["tool"]["setuptools"]
    folders = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for name, path in MODULES.items()
    }
    assert set(setuptools["packages"]) == folders
    assert setuptools["package-dir"] == {
        "interp": "interp",
        **{f"interp.{folder}": folder for folder in LINKED},
    }


def test_only_interp_is_importable_elsewhere(tmp_path):
    program = f"""
        from importlib.util import find_spec
        for name in {LINKED!r}:
            spec = find_spec(name)
            print(spec and [spec.origin, *(spec.submodule_search_locations or ())])
    """
    assert str(ROOT) not in python(program, tmp_path)


def test_a_foreign_kernels_package_wins_over_our_folder(tmp_path):
    foreign = tmp_path / "kernels"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("OWNER = 'another project'\n")
    program = """
        import sys, kernels
        print(sys.path[0] or ".", kernels.OWNER)
    """
    # The working directory comes first on the path, the foreign package after it.
    assert python(program, ROOT, tmp_path) == ". another project"


def test_our_kernels_folder_is_no_regular_package_at_the_root():
    program = f"""
        from importlib.util import find_spec
        spec = find_spec("kernels")
        regular = spec is not None and spec.origin is not None
        print(regular and spec.origin.startswith({str(ROOT / "kernels")!r}))
    """
    assert python(program, ROOT) == "False"


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_the_data(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("interp", *LINKED):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=skip)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("interp-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        name.replace(".", "/")
        + ("/__init__.py" if path.name == "__init__.py" else ".py")
        for name, path in MODULES.items()
    }
    data = {"interp/py.typed", "interp/data/lighthouse.txt"} | {
        f"interp/viz/templates/{path.name}"
        for path in (ROOT / "viz" / "templates").glob("*")
    }
    missing = (expected | data) - names
    assert not missing
    assert {name.split("/")[0].split("-")[0] for name in names} == {"interp"}
