"""The four packages load their names when they are used, and list them alike for people, tools and Python."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import bayesopt
import dnas
import results
import search_spaces
from search_spaces.lazy import attach

PACKAGES = [pytest.param(package, id=package.__name__) for package in (dnas, search_spaces, results, bayesopt)]


def for_type_checkers(package: ModuleType) -> dict[str, str]:
    """Name → module, of the imports under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_type_checkers_read_is_what_is_loaded(package: ModuleType) -> None:
    told = for_type_checkers(package)
    assert sorted(package.__all__) == sorted(told)
    assert set(told) <= set(dir(package))
    for name, module in told.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_can_be_imported_at_once_and_others_are_refused(package: ModuleType) -> None:
    names: dict[str, object] = {}
    exec(f"from {package.__name__} import *", names)
    assert set(package.__all__) <= set(names)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing
    with pytest.raises(ImportError, match="nothing"):
        exec(f"from {package.__name__} import nothing")


def test_importing_the_packages_waits_for_no_heavy_library() -> None:
    code = (
        "import sys, dnas, search_spaces, results, bayesopt; "
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("toy_package")
    monkeypatch.setitem(sys.modules, "toy_package", package)
    package.__getattr__, package.__dir__ = attach("toy_package", {"json": ("dumps",)})  # type: ignore[method-assign]
    assert "dumps" not in vars(package)
    assert "dumps" in dir(package)
    assert package.dumps is importlib.import_module("json").dumps
    assert "dumps" in vars(package)
