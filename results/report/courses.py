"""How the search, the choice and the trials of pruning went, as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from results.events import Event, Note
from results.pareto import ParetoFront
from results.pictures.curve_data import Column, SearchCurves, search_curves
from results.pictures.prune_data import ratio_panels
from results.pictures.switch_data import SwitchRow, switch_rows
from results.pictures.trial_data import BudgetTrials, prune_trials
from results.pools import BudgetPool, mean_loss, pools
from results.report.points import metric_json
from results.tables.pool import judged_text, told
from results.units import amount_text, measured
from search_spaces.assignments import BitAssignment
from search_spaces.provenance import Profile, Pruned
from search_spaces.sensitivities import Sensitivities

Assignments = Mapping[str, BitAssignment]


def searches_json(events: Sequence[Event], assignments: Assignments) -> list[dict[str, Any]]:
    """Every search epoch by epoch, what it came to in words, and what was noted about it."""
    notes = list(dict.fromkeys(event.text for event in events if isinstance(event, Note)))
    return [
        _search_json(course) | {"notes": [text for text in notes if text.startswith(f"{label}: ")]}
        for label, course in search_curves(events, assignments).items()
    ]


def _search_json(course: SearchCurves) -> dict[str, Any]:
    return {
        "label": course.label,
        "metric": metric_json(course.metric),
        "epochs": course.epochs,
        "soft": course.soft,
        "argmax": course.argmax,
        "costs": [asdict(curve) for curve in course.costs],
        "temperature": course.temperature,
        "entropy": course.entropy,
        "told": _course_told(course),
        "theta": [
            _theta_json("weights", course.weight_probabilities, course.weight_bits, course.decision_entropy),
            _theta_json("inputs", course.activation_probabilities, course.activation_bits, course.decision_entropy),
        ],
    }


def _course_told(course: SearchCurves) -> str:
    """How decided θ is in the end, and how far the mixture is from its likeliest net."""
    words = []
    if course.entropy and course.entropy[-1] is not None:
        words.append(
            f"after epoch {course.epochs[-1]} θ has {100 * course.entropy[-1]:.0f} % of the entropy of a uniform "
            "choice (0 % is decided)"
        )
    soft, argmax = course.soft[-1] if course.soft else None, course.argmax[-1] if course.argmax else None
    if soft is not None and argmax is not None:
        unit = "points" if course.metric.unit == "%" else course.metric.unit
        words.append(f"the mixture and its likeliest net are {abs(soft - argmax):.3g} {unit} apart".rstrip())
    unlike = sum(any(pair) for pair in course.unlike_last(course.final_bits).values())
    if course.final_bits:
        words.append(f"what was kept is not the likeliest in {unlike} of {len(course.final_bits)} decisions")
    return "; ".join(words)


def _theta_json(
    what: str,
    probabilities: Mapping[str, tuple[Mapping[int, float] | None, ...]],
    bits: Mapping[str, tuple[int | None, ...]],
    entropy: Mapping[str, Column],
) -> dict[str, Any]:
    """By epoch, decision and width the probability in thousandths; of older runs 1000 for the likeliest alone."""
    exact = bool(probabilities)
    shares = probabilities or {
        name: tuple(None if each is None else {each: 1.0} for each in row) for name, row in bits.items()
    }
    widths = sorted({width for row in shares.values() for each in row if each for width in each})
    names = list(shares)
    epochs = range(len(next(iter(shares.values()), ())))
    values = [[[round(1000 * (shares[n][e] or {}).get(w, 0.0)) for w in widths] for n in names] for e in epochs]
    entropies = [[entropy[name][epoch] if name in entropy else None for name in names] for epoch in epochs]
    return {
        "what": what,
        "exact": exact,
        "widths": widths,
        "names": names,
        "values": values,
        "entropies": [[None if v is None else round(v, 3) for v in row] for row in entropies],
    }


def pools_json(events: Sequence[Event], assignments: Assignments) -> list[dict[str, Any]]:
    """What the assignment of each budget was chosen from, those that came furthest first."""
    return [_pool_json(pool) for pool in pools(events, assignments)]


def _pool_json(pool: BudgetPool) -> dict[str, Any]:
    above, below = told(pool)
    ranked = sorted(pool.candidates, key=lambda each: (-len(each.rounds), mean_loss(each.rounds)))
    return {
        "search": pool.search,
        "above": above,
        "below": below,
        "candidates": [
            {
                "id": each.id,
                "from": list(each.sources),
                "free": each.free_source is not None,
                "cost": ", ".join(amount_text(name, value) for name, value in each.costs.items()),
                "losses": [judged.loss for judged in each.rounds],
                "errors": [judged.standard_error for judged in each.rounds],
                "texts": [judged_text(judged) for judged in each.rounds],
                "chosen": each.became is not None,
            }
            for each in ranked
        ],
    }


def trials_json(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The trials of every prune run, budget by budget."""
    return [_budget_json(trials) for found in prune_trials(events).values() for trials in found]


def _budget_json(trials: BudgetTrials) -> dict[str, Any]:
    rank = trials.forecast.rank_correlation
    told = (
        ""
        if rank is None
        else f"what the surrogate foretold and what was measured have a rank correlation of {rank:.2f} "
        f"over {len(trials.forecast.trials)} trials"
    )
    plain = asdict(trials)
    return {key: plain[key] for key in ("run", "title", "value_label", "rises", "curves", "uniform")} | {"told": told}


def ratios_json(assignments: Assignments) -> list[dict[str, Any]]:
    """What pruning removed of each channel group, of every pruned assignment."""
    pruned = [name for name, item in assignments.items() if isinstance(item.provenance, Pruned)]
    return [asdict(panel) for panel in ratio_panels(pruned, assignments)]


def switchable_json(front: ParetoFront, assignments: Assignments) -> list[dict[str, Any]]:
    """The profiles of every switchable net beside the same assignments trained alone."""
    nets = switch_rows(front, assignments)
    return [{"net": net, "profiles": [_profile_json(row, assignments) for row in rows]} for net, rows in nets.items()]


def _profile_json(row: SwitchRow, assignments: Assignments) -> dict[str, Any]:
    metric, origin = row.metric, assignments[row.assignment].provenance
    figures = {"val": row.val, "alone_val": row.alone_val, "test": row.test, "alone_test": row.alone_test}
    texts = {
        name: "" if found is None else f"{measured(metric, found.mean, found.std, found.n)} {metric.unit}".rstrip()
        for name, found in figures.items()
    }
    gap = None if row.alone_val is None else metric.scale * metric.difference(row.val.mean, row.alone_val.mean)
    return {
        "profile": row.profile,
        "id": row.assignment,
        "alone": origin.alone if isinstance(origin, Profile) else None,
        "size": row.size_bytes,
        "size_text": amount_text("size_bytes", row.size_bytes),
        "bitops_text": amount_text("bitops", row.bitops),
        "texts": texts,
        "val": metric.scale * row.val.mean,
        "alone_val": None if row.alone_val is None else metric.scale * row.alone_val.mean,
        "gap": None if gap is None else f"{gap:+.2f}" if metric.unit == "%" else f"{gap:+.4g}",
    }


def sensitivities_json(found: Sensitivities) -> dict[str, Any]:
    """What each width of each layer costs in loss."""
    parts = [{"what": "weights", "widths": found.weight_bits, "rows": list(found.weights.values())}]
    if len(found.activation_bits) > 1:
        parts.append({"what": "inputs", "widths": found.activation_bits, "rows": list(found.inputs.values())})
    return {"kind": found.kind, "told": found.told, "layers": list(found.weights), "parts": parts}
