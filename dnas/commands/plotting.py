"""The command that draws: fronts, bits and pruning ratios along them, the course of every search and its trials."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from matplotlib.figure import Figure

from dnas.commands.terminal import show, show_json, tell
from dnas.commands.viewing import shown_ids
from results.comparison import cost_of_all
from results.events import Searched
from results.files import write_text
from results.pareto import ParetoFront, fronts_over
from results.pictures.bits import draw_bit_map
from results.pictures.curve_data import search_curves
from results.pictures.curves import draw_search_curves
from results.pictures.drawn import Row, bit_rows, csv_of, curve_rows, front_rows, ratio_rows, trial_rows
from results.pictures.figures import SCREEN, Style, save_figure
from results.pictures.front import draw_front_picture
from results.pictures.plot_data import bit_map, front_picture
from results.pictures.prune_data import ratio_panels
from results.pictures.ratios import draw_ratios
from results.pictures.trial_data import prune_trials
from results.pictures.trials import draw_trials
from results.pools import proposed_by_theta
from results.run.folder import Run
from results.run.layout import FRONT_JSON
from search_spaces.errors import InputError

DATA_SUFFIX = ".data.csv"
"""Beside a picture; a run has a front.csv of its own."""


@dataclass(frozen=True)
class Picture:
    """One picture: the name of its file, how it is drawn, and the numbers in it."""

    name: str
    draw: Callable[[Style], Figure]
    rows: Callable[[], Iterable[Row]]


class NothingPrunedError(InputError):
    """No run has a pruned assignment or a trial to draw."""


def plot(
    folders: Sequence[Path],
    x: str | None,
    out: Path | None,
    kinds: Sequence[str],
    as_json: bool,
    style: Style = SCREEN,
    with_data: bool = False,
) -> None:
    """Draw the pictures of these ``kinds`` ("front", "bits", "curves", "ratios", "trials"), each into its own file.

    Without ``x`` fronts are drawn over the cost that they are of. Of a run that has pruned nothing the last two are
    left out in silence, unless one of them is all that is asked.

    With ``out`` the first picture goes there and the others beside it, their names behind its own; else those of one
    run go into its folder, those of several, and of one that cannot be written to, into the current one. Raises
    :class:`InputError` where there is nothing to draw.
    """
    runs = _opened(folders)
    x = x or cost_of_all(_front(run) for run in runs.values() if (run.folder / FRONT_JSON).exists())
    _check_cost(runs, x)
    named, missing = _pictures(runs, x, kinds)
    if not named:
        raise InputError("; ".join(missing) or "there is nothing to draw")
    for sentence in missing:
        tell(sentence)
    home = folders[0] if len(folders) == 1 and os.access(folders[0], os.W_OK) else Path()
    further = [
        home / f"{picture.name}{style.suffix}" if out is None else _beside(out, picture.name, kinds)
        for picture in named
    ]
    paths = further if out is None else [out, *further[1:]]
    tables = [path.with_suffix(DATA_SUFFIX) for path in paths] if with_data else []
    for path in (*paths, *tables):
        if path.is_dir():
            raise InputError(f"{path} is a folder; move it away, or name another file with --out")
    for path, picture in zip(paths, named, strict=True):
        save_figure(picture.draw(style), path, style)
    for path, picture in zip(tables, named, strict=bool(tables)):
        write_text(path, csv_of(list(picture.rows())))
    written = list(map(str, (*paths, *tables)))
    if as_json:
        show_json({"files": written})
    else:
        show("written:", *(f"  {path}" for path in written))


def _beside(out: Path, name: str, kinds: Sequence[str]) -> Path:
    """The file of a further picture; what the only kind asked for, or ``out``, says already is not said again."""
    said = kinds[0] if len(kinds) == 1 else out.stem
    return out.with_stem(f"{out.stem}-{name.removeprefix(f'{said}-')}")


def _check_cost(runs: Mapping[str, Run], x: str) -> None:
    """Refuse a cost that a front does not have before anything is written; a run without a front says so later."""
    fronts_over({name: _front(run) for name, run in runs.items() if (run.folder / FRONT_JSON).exists()}, x)


@lru_cache(maxsize=8)
def _front(run: Run) -> ParetoFront:
    """The front of a run, read once for all its pictures."""
    return run.load_front()


def _opened(folders: Sequence[Path]) -> dict[str, Run]:
    """Runs by name, or by path where two have the same name."""
    runs = [Run.open(folder) for folder in dict.fromkeys(folders)]
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.folder): run for run in runs}


def _pictures(runs: Mapping[str, Run], x: str, kinds: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """What can be drawn, and in words what of ``kinds`` cannot be."""
    makers = {
        "front": _front_pictures,
        "bits": _bit_pictures,
        "curves": _curve_pictures,
        "ratios": _ratio_pictures,
        "trials": _trial_pictures,
    }
    found: list[Picture] = []
    missing: list[str] = []
    for kind in kinds:
        try:
            found += makers[kind](runs, x)
        except NothingPrunedError as error:
            missing += [str(error)] if len(kinds) == 1 else []
        except InputError as error:
            missing.append(str(error))
    return found, list(dict.fromkeys(missing))


def _front_pictures(runs: Mapping[str, Run], x: str) -> Iterator[Picture]:
    picture = front_picture({name: _front(run) for name, run in runs.items()}, x)
    yield Picture("front", partial(draw_front_picture, picture), partial(front_rows, picture))


def _bit_pictures(runs: Mapping[str, Run], x: str) -> Iterator[Picture]:
    for name, run in runs.items():
        ids, count = shown_ids(run, _front(run).by_cost(x))
        found = run.assignments(ids)
        chosen = [found[id] for id in ids if id in found]
        if not chosen:
            raise InputError(f"{run.folder} has no assignment on its front to draw")
        if len(ids) < count:
            tell(f"bits of {len(ids)} of the {count} assignments on the front of {run.folder} are drawn")
        bits = bit_map(chosen)
        yield Picture(_file_name("bits", name, runs), partial(draw_bit_map, bits), partial(bit_rows, bits))


def _curve_pictures(runs: Mapping[str, Run], x: str) -> Iterator[Picture]:
    for name, run in runs.items():
        events = run.journal.events()
        searched = {event.run for event in events if isinstance(event, Searched)}
        curves = search_curves(events, run.assignments(searched.union(proposed_by_theta(events).values())))
        if not curves:
            raise InputError(f"{run.folder} has not begun its search, so there are no curves")
        for label, course in curves.items():
            title = _file_name(f"curves-{label}", name, runs)
            yield Picture(title, partial(draw_search_curves, course), partial(curve_rows, course))


def _ratio_pictures(runs: Mapping[str, Run], x: str) -> Iterator[Picture]:
    """Those on the front, or all pruned ones where none is on it."""
    drawn = 0
    for name, run in runs.items():
        found = run.assignments()
        points = run.load_front().by_cost(x).points if (run.folder / FRONT_JSON).exists() else ()
        pruned = [point for point in points if point.kind == "pruned" and point.assignment in found]
        chosen = [point.assignment for point in pruned if point.on_front] or [point.assignment for point in pruned]
        panels = ratio_panels(chosen, found)
        drawn += len(panels)
        if panels:
            yield Picture(_file_name("ratios", name, runs), partial(draw_ratios, panels), partial(ratio_rows, panels))
    if not drawn:
        raise NothingPrunedError(f"{' and '.join(runs)}: there is no measured pruned assignment to draw")


def _trial_pictures(runs: Mapping[str, Run], x: str) -> Iterator[Picture]:
    drawn = 0
    for name, run in runs.items():
        for label, budgets in prune_trials(run.journal.events()).items():
            drawn += 1
            title = _file_name(f"trials-{label}", name, runs)
            yield Picture(title, partial(draw_trials, budgets), partial(trial_rows, budgets))
    if not drawn:
        raise NothingPrunedError(f"{' and '.join(runs)}: there is no trial of pruning to draw")


def _file_name(what: str, run: str, runs: Mapping[str, Run]) -> str:
    words = what if len(runs) == 1 else f"{what}-{run}"
    return re.sub(r"[^\w.+=-]+", "-", words).strip("-")
