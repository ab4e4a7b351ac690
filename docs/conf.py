"""How the pages become a site: ``sphinx-build -W docs site``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "dnas"
author = "the authors of dnas"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "dnas"

myst_heading_anchors = 4
suppress_warnings = [
    "misc.highlighting_failure",  # pages show JSON with dots in it
    "myst.xref_missing",  # files beside the benchmarks' page; that links lead somewhere is a test of its own
]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True}

# Pages that lie elsewhere in the repository are in the site under these names.
ELSEWHERE = {"../benchmarks/README.md": "benchmarks.md", "../CHANGELOG.md": "changes.md"}
PACKAGES = ("dnas", "search_spaces", "bayesopt", "results")


def _linked(app: Any, name: str, source: list[str]) -> None:
    """Let links lead to pages of the site, where these only include what lies elsewhere."""
    if name not in ("benchmarks", "changes"):
        for path, page in ELSEWHERE.items():
            source[0] = source[0].replace(f"]({path}", f"]({page}")


def _once(app: Any, name: str, source: list[str]) -> None:
    """Describe a name that several packages export once, where it comes first."""
    if name == "api":
        exported = {package: import_module(package).__all__ for package in PACKAGES}
        for number, package in enumerate(PACKAGES):
            known = {each for before in PACKAGES[:number] for each in exported[before]}
            source[0] = source[0].replace(f"KNOWN BEFORE {package}", ", ".join(sorted(known & {*exported[package]})))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _linked)
    app.connect("source-read", _once)
