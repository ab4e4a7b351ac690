"""Whatever a file of a run holds, every command that reads it works or ends with one short sentence.

Each file of a small made-up run is changed at one place at a time, by kinds of changes, and sealed again as whoever
does it on purpose can.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dnas.commands import exporting, plotting, status_view, switch_view, viewing
from dnas.config.file import dump_job, load_job
from dnas.jobs.job import load_network
from dnas.jobs.planning import plan_job
from results.files import SEAL
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.preprocessing import Preprocessing
from results.ranking import Correlation, Ranked, Ranking
from results.run.folder import Run
from results.run.lost import lost_files
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import MOST_LETTERS, InputError, JobError
from search_spaces.metrics import ACCURACY
from search_spaces.provenance import read_provenance
from search_spaces.sensitivities import Sensitivities

Read = Callable[[Path], object]
LONGEST = 800
SHARE = 0.012
"""Of all changes, in the default suite: those of a seed."""


def nested(depth: int) -> Any:
    found: Any = {}
    for level in range(depth):
        found = [found] if level % 2 else {"a": found}
    return found


VALUES: dict[str, Any] = {
    **{"none": None, "true": True, "text": "abc", "no text": "", "number": "9", "list": [], "object": {}},
    **{"negative": -5, "zero": 0, "part": 0.5, "NaN": float("nan"), "infinite": float("inf"), "tiny": 5e-324},
    **{"whole": 10**400, "large": 1e100, "larger": 1e308, "long": 2**63, "numbers": [1, -1, 3.5], "texts": ["a"]},
    **{"page": "x" * 50_000, "control": "a\x1b[31m\n\u202e../../b", "template": "{}%s{0.x}[bold]", "half": "\ud800"},
    **{"nested": nested(20), "deep": nested(150), "deeper": nested(700)},
}
MISSING, MORE, OTHER_NAME = object(), object(), object()
CHANGES = {**VALUES, "missing": MISSING, "more": MORE, "other name": OTHER_NAME}


def places(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        list(data.items()) if isinstance(data, dict) else list(enumerate(data[:1])) if isinstance(data, list) else []
    )
    return [place, *(found for key, value in inside for found in places(value, (*place, key)))]


def changed(data: Any, place: tuple[Any, ...], change: Any) -> Any:
    """The data with something else at one place; what cannot be changed so is left as it is."""
    if place and (len(place) > 1 or change not in (MISSING, OTHER_NAME)):
        copy = dict(data) if isinstance(data, dict) else list(data)
        inside = changed(copy.get(place[0]) if isinstance(copy, dict) else copy[place[0]], place[1:], change)
        copy[place[0]] = inside
        return copy
    if place and isinstance(data, dict):
        rest = {key: value for key, value in data.items() if key != place[0]}
        return rest if change is MISSING else {**rest, f"{place[0]}\n../x": data[place[0]]}
    if place:
        return data[1:] if isinstance(data, list) else data
    if change is MORE:
        return (
            {**data, "a key": {"b": [1]}} if isinstance(data, dict) else [*data, 1] if isinstance(data, list) else data
        )
    return data if change in (MISSING, OTHER_NAME) else change


def assignment(name: str, bits: int, **origin: Any) -> BitAssignment:
    layers = {"conv": LayerBits(bits, 8, 4, (0, 1, 3) if "ratios" in origin else None), "fc": LayerBits(8, bits, 10)}
    cost = {"size_bytes": 100.0 * bits, "bitops": 1e6 * bits, "macs": 1e5}
    metrics = {"val_top1": {"mean": 0.9, "std": 0.01, "n": 2}, "same_as": name}
    made = read_provenance({"run": "search-1", "budget": "12%", "limits": {"size_bytes": 500.0}, **origin})
    model = ModelReference("zoo:tiny_resnet", (1, 8, 8))
    return BitAssignment(name, model, layers, cost, metrics, made, {name: cost for name in layers})


FOUND = assignment("search-1", 4, kind="search")
PRUNED = assignment("p", 4, kind="pruned", parent="search-1", ratios={"g": 0.25}, kept_units={"g": (3, 4)})
PROFILE = assignment("s", 2, kind="switchable", net="switchable-1", profile="w2", alone="search-1")
FRONT = ParetoFront.from_points(
    [
        FrontPoint("search-1", "search", 400, 4e6, 1e5, Estimate(0.9, 0.01, 2), Estimate(0.8), budget="12%"),
        FrontPoint("p", "pruned", 300, 4e6, 1e5, Estimate(0.8), limits={"size_bytes": 500.0}, kept_filters=0.75),
        FrontPoint("s", "switchable", 200, 2e6, 1e5, Estimate(0.7), extra_costs={"latency_ms": 3.0}),
    ],
    reference=FloatReference(3200.0, 0.95, 0.94, {"bitops": 1e9}),
    preprocessing=Preprocessing((1, 8, 8), (0.3,), (0.4,), 10, tuple("0123456789")),
)
EPOCH = {"stage": "search", "run": "search-1", "loss": 1.5, "top1": 0.8, "argmax_top1": 0.7, "temperature": 1.0}
EPOCH |= {"expected": {"size_bytes": 600.0}, "budget": {"size_bytes": 500.0}, "entropy": 0.5, "seconds": 0.1}
EPOCH |= {"decision_entropy": {"conv": 0.5}, "bits": {"conv": [4, 4]}, "epochs": 2}
TRIAL = {"proposal": {"number": 0, "limits": {"size_bytes": 350.0}, "counts": {"g": 3}, "x": [0.1], "source": "model"}}
TRIAL["proposal"] |= {"predicted_mean": 0.3, "predicted_std": 0.1}
JUDGED = {"round": 1, "epochs": 1, "loss": 0.3, "top1": 0.9, "losses": [0.2, 0.4]}
RECORDS: list[dict[str, Any]] = [
    {"event": "started", "version": 2},
    {"event": "stage", "stage": "search", "state": "start"},
    *({"event": "epoch", "epoch": epoch, **EPOCH} for epoch in (1, 2)),
    {"event": "searched", "run": "search-1"},
    {"event": "pool", "run": "search-1", "proposals": {"search-1": ["theta"], "p": ["ilp-1"]}, "images": 99},
    *({"event": "judged", "proposal": name, **JUDGED} for name in ("search-1", "p")),
    {"event": "decoded", "assignment": "search-1", "kind": "search", "run": "search-1", "cost": {"size_bytes": 400.0}},
    {"event": "measured", "assignment": "search-1", "kind": "search", "seed": 0, "val_top1": 0.9},
    *(
        {"event": "trial", "run": "prune-search-1", "kind": kind}
        | {"trial": {"proposal": {**TRIAL["proposal"], "number": n}, "cost": {"size_bytes": 300.0}, "loss": 0.3 + n}}
        for n, kind in enumerate(("bayesian", "bayesian", "random"))
    ),
    {"event": "finalist", "run": "prune-search-1", "top1": 0.9, "loss": 0.3, "proxy_loss": 0.3, "number": 0},
    {"event": "profiles", "net": "switchable-1", "profiles": ["search-1"]},
    {"event": "prune", "assignment": "search-1", "section": {"trials": 3}},
    {"event": "withdrawn", "request": 0, "message": "m"},
    {"event": "lost", "file": "assignments/q.json", "why": "gone"},
    {"event": "tested", "assignment": "search-1", "seed": 0, "test_top1": 0.9},
    {"event": "float", "val_top1": 0.95, "test_top1": 0.94},
    {"event": "note", "text": "a note"},
    {"event": "failed", "message": "a message"},
]


RANKING = Ranking(
    supernet="a",
    budget="12%",
    limits={"size_bytes": 500.0},
    images=99,
    epochs=1,
    metric=ACCURACY.to_json(),
    assignments=(Ranked(bits={"conv": (4, 8)}, cost={"size_bytes": 400.0}, loss=0.3, score=0.9, finetuned=True),),
    correlation=Correlation(tau=0.5, error=0.1, low=0.3, high=0.7, chance=0.01),
)
SENSITIVITIES = Sensitivities(
    kind="hessian",
    weight_bits=(4, 8),
    activation_bits=(8,),
    weights={"conv": (0.1, 0.0)},
    inputs={"conv": (0.0,)},
    images=9,
    errors={"conv": 0.1},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Run.create(tmp_path / "run", dump_job(load_job("digits")), {"torch": "2"}) as run:
        for item in (FOUND, PRUNED, PROFILE):
            run.save_assignment(item)
        run.save_front(FRONT)
        run.save_ranking(RANKING)
        run.save_sensitivities(SENSITIVITIES)
    write_journal(run.folder, RECORDS)
    return run.folder


def write_journal(folder: Path, records: list[Any]) -> None:
    stamped = [{"time": 1e9, **record} if isinstance(record, dict) else record for record in records]
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in stamped))


@pytest.fixture(autouse=True)
def _computed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a picture shows is computed; drawing it takes a second each, and is tested where it is."""
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path, style: None)
    for name in ("draw_front_picture", "draw_bit_map", "draw_ratios", "draw_search_curves", "draw_trials"):
        monkeypatch.setattr(plotting, name, lambda *computed: None)


def drawn(folder: Path, kind: str) -> None:
    plotting.plot([folder], "size_bytes", None, [kind], True, with_data=True)


def written(folder: Path, name: str, format: str) -> None:
    exporting.export(folder, name, format, folder.parent / f"out.{format}", True)


STATES: tuple[Read, ...] = (
    lambda folder: status_view.status([folder], folder.parent, True),
    lambda folder: status_view.status([], folder.parent, False),
    lambda folder: lost_files(Run.open(folder)),
)
TABLES: tuple[Read, ...] = (
    partial(viewing.show_run, as_json=False),
    partial(viewing.show_run, as_json=True),
    partial(viewing.show_assignment, name="float", as_json=False),
    partial(switch_view.switch, as_json=False),
    partial(switch_view.switch, as_json=True),
)
POOLS: tuple[Read, ...] = (partial(viewing.show_pools, as_json=False), partial(viewing.show_pools, as_json=True))
PICTURES: tuple[Read, ...] = tuple(
    partial(drawn, kind=kind) for kind in ("front", "bits", "curves", "ratios", "trials")
)


def of_one(name: str) -> tuple[Read, ...]:
    """The commands that read one assignment."""
    shown = tuple(partial(viewing.show_assignment, name=name, as_json=as_json) for as_json in (False, True))
    return (*shown, *(partial(written, name=name, format=format) for format in ("json", "csv")))


READ: dict[str, tuple[Read, ...]] = {
    "front.json": (*TABLES, *PICTURES[:2]),
    "assignments/search-1.json": (*of_one("search-1"), *TABLES, *POOLS, *PICTURES),
    "assignments/p.json": (*of_one("p"), *TABLES, *POOLS, *PICTURES),
    "assignments/s.json": (*of_one("s"), *TABLES, *PICTURES[:2]),
    "ranking.json": TABLES[:2],
    "sensitivity-hessian.json": (lambda folder: Run.open(folder).sensitivities("hessian"),),
    "environment.json": (lambda folder: Run.open(folder).environment(), *STATES),
}


def look(read: Read, folder: Path) -> str:
    """What reading ends with: nothing, or the sentence of an InputError; anything else is raised."""
    out, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            read(folder)
        sentence = ""
    except InputError as error:
        sentence = str(error)
    assert max(map(len, [sentence, *told.getvalue().splitlines()])) < LONGEST
    return sentence


def variants(data: Any, share: float, draw: random.Random) -> Iterator[tuple[str, Any]]:
    """The data with one change each, a ``share`` of all that there are; with what was done, in words."""
    for place in places(data):
        for name, change in CHANGES.items():
            if draw.random() < share:
                yield f"{name} at {place}", changed(data, place, change)


def check_files(folder: Path, file: str, share: float) -> int:
    """Look with every command at every variant of a file; returns how many commands refused one."""
    path, refused = folder / file, 0
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != SEAL}
    for words, variant in variants(data, share, random.Random(file)):
        path.write_text(json.dumps(variant))
        for read in READ[file]:
            try:
                refused += bool(look(read, folder))
            except Exception as error:
                raise AssertionError(f"{file} with {words}, read by {read}") from error
    return refused


def check_journal(folder: Path, event: str, share: float) -> int:
    """The same for every record of an event in a journal."""
    refused = 0
    for index, record in enumerate(RECORDS):
        if record["event"] != event:
            continue
        for words, variant in variants({"time": 1e9, **record}, share, random.Random(f"{event}{index}")):
            write_journal(folder, [*RECORDS[:index], variant, *RECORDS[index + 1 :]])
            for read in (*STATES, *POOLS, *PICTURES[2:]):
                try:
                    refused += bool(look(read, folder))
                except Exception as error:
                    raise AssertionError(f"a journal with {words} in '{event}', read by {read}") from error
    return refused


EVENTS = sorted({record["event"] for record in RECORDS})


def test_the_run_is_sound_as_it_is(folder: Path) -> None:
    for file, reads in READ.items():
        assert [look(read, folder) for read in reads] == [""] * len(reads), file
    assert [look(read, folder) for read in (*STATES, *POOLS, *PICTURES)] == [""] * 10


@pytest.mark.parametrize("file", READ)
def test_a_changed_file_is_read_or_refused(file: str, folder: Path) -> None:
    assert check_files(folder, file, share=max(SHARE, 0.2 * (file == "environment.json")))


def test_a_changed_journal_is_read_or_refused(folder: Path) -> None:
    assert sum(check_journal(folder, event, share=SHARE / 2) for event in EVENTS) > 100


@pytest.mark.slow
@pytest.mark.parametrize("file", [*READ, *EVENTS])
def test_every_change_of_a_file_is_read_or_refused(file: str, folder: Path) -> None:
    assert check_files(folder, file, share=1.0) if file in READ else check_journal(folder, file, share=1.0)


@pytest.mark.parametrize(
    ("file", "tables"),
    [
        ("front.json", ("", "metric", "points 0", "points 0 val_top1", "float", "preprocessing")),
        ("assignments/search-1.json", ("", "model", "layers conv", "cost", "metrics", "provenance")),
        ("ranking.json", ("", "assignments 0", "correlation", "metric")),
        ("sensitivity-hessian.json", ("",)),
        ("environment.json", ("",)),
    ],
)
def test_later_versions_may_add_keys(file: str, tables: tuple[str, ...], folder: Path) -> None:
    path = folder / file
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != SEAL}
    for table in tables:
        place = tuple(int(part) if part.isdecimal() else part for part in table.split())
        value = 3.5 if table == "cost" else {"b": [1]}
        path.write_text(json.dumps(changed(data, (*place, "a later key"), value)))
        assert [look(read, folder) for read in READ[file]] == [""] * len(READ[file]), table


@pytest.mark.parametrize("key", ["model.checkpoint", "space.capability", "costs.latency_table"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(key: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    job = load_job("digits", [f"{key}='{tmp_path / 'pipe'}'"])
    with pytest.raises(InputError, match=r"pipe.*it is a pipe or a device; name a file"):
        plan_job(job, load_network(job).module, (1, 8, 8))


def test_a_sentence_is_short_whatever_stands_in_it() -> None:
    for kind in (InputError, JobError):
        sentence = str(kind(f"'{'x' * 10_000}' is no such thing; do this instead"))
        assert len(sentence) <= MOST_LETTERS
        assert sentence.startswith("'xxx")
        assert sentence.endswith("is no such thing; do this instead")
        assert str(kind("short")) == "short"
