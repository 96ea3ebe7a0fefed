"""The hand-written package list, the folder mapping and the import direction."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"jaxwrap": "jaxwrap", "codecs": "jaxwrap.codecs", "train": "jaxwrap.train"}
FORBIDDEN = {"jaxwrap": ("jaxwrap.codecs", "jaxwrap.train"), "codecs": ("jaxwrap.train",), "train": ()}
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


def imported_modules(path: Path, *, at_import: bool = False) -> list[str]:
    """All of them, or those that importing the file itself imports: not the ones inside functions."""
    found = []
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def test_the_package_list_names_every_folder_with_an_init_file() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        ".".join([FOLDERS[folder], *init.parent.relative_to(ROOT / folder).parts])
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == present


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_in_the_agreed_direction(path: Path) -> None:
    for module in imported_modules(path):
        assert module.split(".")[0] not in ("codecs", "train"), (
            f"import {module}: the installed name is jaxwrap.{module}"
        )
        assert not module.startswith(FORBIDDEN[path.relative_to(ROOT).parts[0]]), f"{module} is downstream of {path}"


CORE = [p for p in SOURCES if p.is_relative_to(ROOT / "jaxwrap") or p.is_relative_to(ROOT / "train" / "fit")]
CORE += [
    ROOT / "codecs" / "proxy.py",
    *(ROOT / "codecs" / "jpeg" / name for name in ("tables.py", "dct.py", "rate.py")),
]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_and_the_training_loop_need_only_jax_libraries(path: Path) -> None:
    allowed = {"jaxwrap", "jax", "flax", "optax", "orbax", "numpy", "scipy", "bjontegaard"}
    import sys

    for module in imported_modules(path, at_import=True):
        top = module.split(".")[0]
        assert top in allowed or top in sys.stdlib_module_names or top == "__future__", f"{path} imports {module}"


def test_library_files_open_nothing_and_start_nothing() -> None:
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / "jaxwrap")):
        for module in imported_modules(path):
            assert module.split(".")[0] not in ("subprocess", "os", "pathlib", "multiprocessing", "io"), (
                f"{path} imports {module}"
            )
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "open" not in calls, f"{path} opens a file"
