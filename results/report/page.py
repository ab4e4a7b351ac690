"""A report as one HTML file that needs nothing else: no other file, no network, no server."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib import import_module, resources
from typing import Any

from results.files import encode_json
from results.report.runs import titles
from search_spaces.errors import InputError

STYLES, PLOTLY_STYLE = "page.css", "plotly.css"
SCRIPTS = ("core.js", "front.js", "chosen.js", "graph.js", "search.js", "tables.js", "main.js")
PLOTLY_STYLE_ID = "plotly.js-style-global"
"""The id of the element in which plotly looks for its style; with the class ``no-inline-styles`` it adds nothing."""
_INJECTED = re.compile(r'getElementById\("([0-9a-f]{64})"\)')
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def page(report: Mapping[str, Any]) -> str:
    """The page of what :func:`results.report.runs.report_json` gives.

    Its security policy lets it run its own scripts alone, each by its digest, and load nothing. Raises
    :class:`InputError` where plotly is not installed.
    """
    plotly, own = plotly_script(), [static(name) for name in SCRIPTS]
    style, plotly_style = static(STYLES), static(PLOTLY_STYLE)
    policy = (
        f"default-src 'none'; script-src {_digests([plotly, *own])}; style-src {_digests([style, plotly_style])}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    head = [
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<style>{style}</style>",
        f'<style id="{PLOTLY_STYLE_ID}" class="no-inline-styles">{plotly_style}</style>',
    ]
    packed = {"plotly": compressed(plotly), "report": compressed(encode_json(report, what="the report"))}
    filled = [*placeholders(plotly)]
    filled += [f'<script type="application/gzip" id="{name}">{text}</script>' for name, text in packed.items()]
    filled += [f"<script>{script}</script>" for script in own]
    return fill(", ".join(titles(report)), _lead(report), head, filled)


def fill(title: str, lead: str, head: Sequence[str], scripts: Sequence[str]) -> str:
    """The page with a title and a first sentence, both plain text, and elements for its head and its end."""
    values = {"title": html.escape(title), "lead": html.escape(lead)}
    values |= {"head": "\n".join(head), "scripts": "\n".join(scripts)}
    return _PLACEHOLDER.sub(lambda found: values[found[1]], static("page.html"))


def compressed(text: str) -> str:
    """The text in letters that mean nothing to HTML; the same text gives the same ones."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def static(name: str) -> str:
    """A file of the page as text."""
    return resources.files("results.report").joinpath("static", name).read_text(encoding="utf-8")


def plotly_script() -> str:
    """Plotly's own bundle; :class:`InputError` where it is not installed."""
    try:
        return str(import_module("plotly.offline").get_plotlyjs())
    except ImportError as error:
        raise InputError("a report draws with plotly, which is not installed: pip install 'dnas[report]'") from error


def placeholders(plotly: str) -> list[str]:
    """Elements that stand where plotly would add a style by itself, so that it leaves it out."""
    return [f'<template id="{found}"></template>' for found in dict.fromkeys(_INJECTED.findall(plotly))]


def _digests(texts: Sequence[str]) -> str:
    """How a security policy names scripts or styles that may stand inside the page."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _lead(report: Mapping[str, Any]) -> str:
    """What to take, of the first run that says it: it can be read before any script has run."""
    fronts = [run["fronts"].get(run["x"], {}) for run in report["runs"]]
    return next((front["take"][0] for front in fronts if front.get("take")), "")
