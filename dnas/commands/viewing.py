"""The commands that read runs: where they stand, their assignments, their pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dnas.commands.terminal import amount_text, show, show_json, tell
from results.pareto import FLOAT, ParetoFront
from results.pictures.plot_data import MOST_COLUMNS, bit_text
from results.pictures.prune_data import filters_of, parents_of
from results.pools import pools
from results.run.folder import Run
from results.run.lost import sound_events
from results.tables.advice import advice
from results.tables.plain import PlainTable
from results.tables.pool import pool_json, render_pool, told
from results.tables.report import front_rows, render_table
from results.tables.verdicts import verdicts
from results.units import spread
from search_spaces.assignments import BitAssignment, kept_rows_of
from search_spaces.errors import InputError, quoted
from search_spaces.layers import FLOAT_BITS

LayerCosts = Mapping[str, Mapping[str, float]]
Filters = Mapping[str, tuple[int, int]]


def show_run(folder: Path, as_json: bool) -> None:
    """Show the measured points of a run and the bits of those on its front."""
    run = Run.open(folder)
    front = run.load_front()
    words = verdicts(front)
    words += _ranked(run)
    ids, count = shown_ids(run, front)
    found, damaged = run.read_assignments(ids)
    for why in damaged.values():
        tell(why)
    if as_json:
        show_json({"run": str(folder), "front": front.to_json(), "verdicts": words, "advice": advice(front)})
        return
    show(render_table(front_rows(front)), "", *words, "", *advice(front))
    chosen = [found[id] for id in ids if id in found]
    if chosen:
        parents = _parents(run, chosen)
        show("", _bits_table(chosen, {item.id: filters_of(item, parents.get(item.id)) for item in chosen}))
    if len(chosen) < count:
        show(
            "", f"bits of {len(chosen)} of the {count} assignments on the front; others: dnas show {quoted(folder)} ID"
        )


def show_pools(folder: Path, as_json: bool) -> None:
    """Show what each budget's assignment was chosen from, and how that was judged, as far as the run has come."""
    run = Run.open(folder)
    events = sound_events(run)
    found = pools(events, run.assignments())
    if not found:
        raise InputError(
            f"{folder} has chosen nothing from a pool; start a run that does with: "
            "dnas search JOB --set choice.enabled=true"
        )
    if as_json:
        show_json({"run": str(folder), "pools": [pool_json(pool) for pool in found]})
        return
    for pool in found:
        above, below = told(pool)
        show(above, render_pool(pool), below, *([""] if pool is not found[-1] else []))


def _ranked(run: Run) -> list[str]:
    """How well the supernet ranks, where that is known."""
    try:
        found = run.ranking()
    except InputError as error:
        tell(f"{error}; work it out again with: dnas rank {quoted(run.folder)}")
        return []
    return [found.told] if found and found.correlation else []


def show_assignment(folder: Path, name: str, as_json: bool) -> None:
    """Show an assignment's bits and costs, layer by layer; of the float network its row of the front."""
    run = Run.open(folder)
    if name == FLOAT:
        _show_float(run, as_json)
        return
    assignment = run.assignment(run.complete_id(name))
    filters = filters_of(assignment, _parents(run, [assignment]).get(assignment.id))
    costs = assignment.layer_costs or _priced_again(run, assignment)
    if as_json:
        kept = {layer: {"kept": kept, "of": of, "ratio": 1 - kept / of} for layer, (kept, of) in filters.items()}
        show_json({**assignment.to_json(), "layer_costs": costs, "filters": kept})
        return
    show(_layer_table(assignment, costs, filters), "", f"in all: {_totals(assignment.cost)}")


def _show_float(run: Run, as_json: bool) -> None:
    """The float network's size, costs and figures, as the front has them."""
    rows = [row for row in front_rows(run.load_front()) if row["kind"] == FLOAT]
    if not rows:
        raise InputError(
            f"the front of {run.folder} does not tell of the float network; measure it with: "
            f"dnas evaluate {quoted(run.folder)} {FLOAT}"
        )
    if as_json:
        show_json(rows[0])
        return
    show(render_table(rows), "", f"in all: {_totals(rows[0]['costs'])}")


def shown_ids(run: Run, front: ParetoFront) -> tuple[list[str], int]:
    """The assignments on the front that the run still has, by rising cost: those to show, and how many there are."""
    present = {path.stem for path in run.assignment_paths()}
    ids = [point.assignment for point in front.front if point.assignment in present]
    return spread(ids, MOST_COLUMNS), len(ids)


def _parents(run: Run, items: Sequence[BitAssignment]) -> dict[str, BitAssignment]:
    """Pruned assignment → the one that it was made from, as far as the run has it."""
    wanted = {item.provenance.parent or "" for item in items}
    return parents_of({**run.assignments(wanted), **{item.id: item for item in items}})


def _totals(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{cost} {amount_text(cost, value)}" for cost, value in costs.items())


def _bits_table(assignments: Sequence[BitAssignment], filters: Mapping[str, Filters]) -> PlainTable:
    """``filters`` are those kept, of how many, of the pruned layers of each assignment."""
    pruned = any(filters.values())
    title = "bits (weights/inputs), filters kept" if pruned else "bits (weights/inputs)"
    table = _table(title, *(assignment.id for assignment in assignments))
    for layer in dict.fromkeys(name for assignment in assignments for name in assignment.layers):
        cells = []
        for assignment in assignments:
            bits, kept = assignment.layers.get(layer), filters[assignment.id].get(layer)
            pair = "" if bits is None else _pair_text(bits.weight_bits, bits.activation_bits)
            cells.append(f"{pair}, {kept[0]} of {kept[1]}" if kept else pair)
        table.add_row(layer, *cells)
    return table


def _pair_text(weight_bits: int, activation_bits: int) -> str:
    pair = (bit_text(weight_bits), bit_text(activation_bits))
    return pair[0] if pair[0] == pair[1] and weight_bits in (0, FLOAT_BITS) else "/".join(pair)


def _priced_again(run: Run, assignment: BitAssignment) -> LayerCosts:
    """Layer → cost → value, of an assignment that does not say it: runs made before they did, and foreign files."""
    from dnas.jobs.pricing import priced_by_layer  # reads the network, and so waits for torch

    try:
        return priced_by_layer(run, assignment)
    except InputError as error:
        tell(f"costs of single layers are not shown: {error}")
        return {}


def _layer_table(assignment: BitAssignment, costs: LayerCosts, filters: Filters) -> PlainTable:
    """One line per layer; what is kept of its filters stands there where any layer lost some."""
    names = list(next(iter(costs.values()), {}))
    pruned = bool(kept_rows_of(assignment.layers))
    stored = {name: bits.scheme.columns() for name, bits in assignment.layers.items() if bits.scheme}
    headings = list(dict.fromkeys(heading for columns in stored.values() for heading in columns))
    extra = (*(("filters", "removed") if pruned else ()), *headings)
    numbers = ("weights", "inputs", *extra, *names)
    table = _table("layer", *numbers, right=numbers)
    for layer, bits in assignment.layers.items():
        own = costs.get(layer, {})
        cells = (amount_text(name, own[name]) if name in own else "" for name in names)
        kept = _kept_text(bits.out_channels, filters.get(layer)) if pruned else ()
        scheme = (stored.get(layer, {}).get(heading, "") for heading in headings)
        table.add_row(layer, bit_text(bits.weight_bits), bit_text(bits.activation_bits), *kept, *scheme, *cells)
    return table


def _kept_text(left: int | None, filters: tuple[int, int] | None) -> tuple[str, str]:
    """Filters kept of how many, and the share that went."""
    if filters is None:
        return "" if left is None else str(left), ""
    kept, of = filters
    return f"{kept} of {of}", f"{100 * (1 - kept / of):.0f} %"


def _table(*headings: str, right: Collection[str] = ()) -> PlainTable:
    table = PlainTable()
    for heading in headings:
        table.add_column(heading, right=heading in right, fold=True)
    return table
