"""The pool of a budget as a table and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.events import Judged
from results.pools import BudgetPool, Candidate, mean_loss
from results.tables.plain import PlainTable
from results.units import amount_text
from search_spaces.metrics import metric_named


def pool_json(pool: BudgetPool) -> dict[str, Any]:
    """A pool as plain values; ``rounds`` are those that a proposal took part in."""
    return {
        "search": pool.search,
        "budget": pool.budget,
        "images": pool.images,
        "proposals": [
            {
                "id": each.id,
                "from": list(each.sources),
                "costs": dict(each.costs),
                "supernet_loss": each.supernet_loss,
                "rounds": [_round_json(judged) for judged in each.rounds],
                "chosen": each.became is not None,
                "became": each.became,
            }
            for each in pool.candidates
        ],
    }


def _round_json(judged: Judged) -> dict[str, Any]:
    told = {"round": judged.round, "epochs": judged.epochs, "split": judged.split, "loss": judged.loss}
    return {**told, "standard_error": judged.standard_error, judged.metric: judged.score}


def render_pool(pool: BudgetPool) -> PlainTable:
    """A terminal table of one pool, those that came furthest first; the loss of each round ± its standard error."""
    count = max((len(each.rounds) for each in pool.candidates), default=0)
    costs = list(dict.fromkeys(name for each in pool.candidates for name in each.costs))
    table = PlainTable()
    table.add_column("proposal")
    table.add_column("from", fold=True)
    in_supernet = any(each.supernet_loss is not None for each in pool.candidates)
    for heading in (*costs, *(["loss in the supernet"] if in_supernet else [])):
        table.add_column(heading, right=True)
    for number in range(1, count + 1):
        judged = next(each.rounds[number - 1] for each in pool.candidates if len(each.rounds) >= number)
        where = " on validation" if judged.split == "val" else ""
        table.add_column(f"loss{where}, {judged.epochs} epoch{'s' if judged.epochs > 1 else ''}", right=True)
    table.add_column("chosen as")
    for each in sorted(pool.candidates, key=_place):
        told = [judged_text(judged) for judged in each.rounds]
        table.add_row(
            each.id,
            ", ".join(each.sources),
            *(amount_text(name, each.costs[name]) if name in each.costs else "" for name in costs),
            *([_loss_text(each.supernet_loss)] if in_supernet else []),
            *told,
            *[""] * (count - len(told)),
            each.became or "",
            style="bold" if each.became else "",
        )
    return table


def _loss_text(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def judged_text(judged: Judged) -> str:
    """The loss with its standard error, and the metric in brackets."""
    if judged.loss is None or judged.score is None:
        return "diverged"
    error = "" if judged.standard_error is None else f" ±{judged.standard_error:.4f}"
    return f"{judged.loss:.4f}{error} ({metric_named(judged.metric).text(judged.score)})"


def _place(each: Candidate) -> tuple[int, float]:
    return -len(each.rounds), mean_loss(each.rounds)


def told(pool: BudgetPool) -> Sequence[str]:
    """What stands above the table of a pool and below it."""
    count = len(pool.candidates)
    finals = any(judged.split == "val" for each in pool.candidates for judged in each.rounds)
    last = "; finalists are fine-tuned in full, and judged on validation" if finals else ""
    return (
        f"{pool.search}, budget {pool.budget}: {count} proposal{'s' if count != 1 else ''}, judged by the loss on "
        f"{pool.images} training images that none of them is trained on, ± its standard error{last}",
        pool.sentence,
    )
