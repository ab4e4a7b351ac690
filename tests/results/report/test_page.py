"""The page itself: one file that asks for nothing, runs only its own scripts, and shows any name as text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from results.report import page as pages
from results.report.page import page, static
from results.report.runs import SCHEMA, kinds_json, report_json, run_json
from search_spaces.errors import InputError
from tests.made_runs import made_material, made_run

HOSTILE = (
    "<script>alert(1)</script>",
    "../../etc/passwd",
    '"><img src=x onerror=alert(1)>',
    "</script><b>",
    "{{head}}",
)


class Reader(HTMLParser):
    """Every element with its attributes and what stands in it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.inside = False
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[int, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = True

    def handle_data(self, data: str) -> None:
        self.texts.append((len(self.elements) - 1 if self.inside else -1, data))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def contents(self, tag: str) -> list[str]:
        places = [place for place, (name, _) in enumerate(self.elements) if name == tag]
        return ["".join(text for at, text in self.texts if at == place) for place in places]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_json([made_run(tmp_path_factory.mktemp("made") / "run")])


@pytest.fixture(scope="module")
def text(report: dict[str, Any]) -> str:
    return page(report)


def test_the_page_asks_for_nothing_and_has_no_handler_inside_an_element(text: str) -> None:
    read = Reader(text)
    for tag, attributes in read.elements:
        assert not {"src", "action", "srcset", "data", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert len(text.encode()) < 3e6


def test_its_policy_names_each_of_its_scripts_and_styles_and_nothing_else(text: str) -> None:
    read = Reader(text)
    policy = next(each["content"] or "" for _, each in read.elements if each.get("http-equiv"))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    digests = {
        tag: {
            f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
            for content, (_, attributes) in zip(
                read.contents(tag), [each for each in read.elements if each[0] == tag], strict=True
            )
            if "type" not in attributes
        }
        for tag in ("script", "style")
    }
    plotly = gzip.decompress(base64.b64decode(contents(text, "plotly")))
    digests["script"].add(f"'sha256-{base64.b64encode(hashlib.sha256(plotly).digest()).decode()}'")
    assert plotly.decode() == get_plotlyjs()
    assert set(rules["script-src"].split()) == digests["script"]
    assert set(rules["style-src"].split()) == digests["style"]
    assert "unsafe" not in policy


def contents(text: str, name: str) -> str:
    found = re.search(rf'<script type="application/gzip" id="{name}">([^<]*)</script>', text)
    assert found
    return found[1]


def test_the_report_in_the_page_is_the_report(report: dict[str, Any], text: str) -> None:
    assert json.loads(gzip.decompress(base64.b64decode(contents(text, "report")))) == json.loads(json.dumps(report))
    assert page(report) == text
    assert (
        "Take" not in text.partition("<main>")[0]
    )  # the script says it with a capital; before, it is as advice told it
    assert "take &#x27;" in text.partition("<main>")[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_of_anything_is_text(tmp_path: Path, text: str, name: str) -> None:
    run = made_run(tmp_path / "run", (name, f"{name}.b", "c", "d"))
    shown = report_json([run])
    shown["runs"][0]["name"] = name
    shown["runs"][0]["fronts"]["size_bytes"]["take"] = [f"take {name}"]
    read, usual = Reader(page(shown)), Reader(text)
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in usual.elements]
    assert read.contents("title") == [name]
    assert read.contents("strong")[0] == f"take {name}"


def test_no_script_makes_elements_of_text() -> None:
    for name in pages.SCRIPTS:
        script = static(name)
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in script, (name, word)
    ids = set(re.findall(r'id="([\w-]+)"', static("page.html")))
    for name in pages.SCRIPTS:
        used = set(re.findall(r'dnas\.(?:at|fill|list|plot)\("([\w-]+)"', static(name)))
        assert used <= {*ids, "report"}, name


def test_every_kind_of_point_is_told_apart_without_colour() -> None:
    kinds = kinds_json()
    assert len({(kind["symbol"], kind["ring"]) for kind in kinds.values()}) == len(kinds)
    assert {kind["group"] for kind in kinds.values()} == {"found", "controls", "profiles"}
    assert {name for name, kind in kinds.items() if kind["group"] == "found"} == {
        *("search", "squantizer", "proposal", "pruned", "given")
    }


def test_without_plotly_the_sentence_says_what_to_install(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(pages, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'dnas\[report\]'"):
        page(report)


@pytest.mark.whole
def test_a_run_of_two_thousand_points_is_one_page_of_less_than_six_megabytes() -> None:
    shown = run_json(made_material(2000, 20)) | {"name": "large"}
    text = page({"schema": SCHEMA, "kinds": kinds_json(), "runs": [shown], "differences": []})
    assert len(text.encode()) < 6e6
    assert all(entry["files"]["json"] for entry in shown["assignments"]["entries"].values())
