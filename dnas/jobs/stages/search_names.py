"""What the searches of a job and all that they find are called."""

from __future__ import annotations

from dnas.config.job import SearchSection
from dnas.jobs.job import Job
from results.pools import THETA
from search_spaces.costs.budgets import Budget

SEARCHING = "search"
WARMUP = "warmup"


def search_labels(job: Job, pruned: bool) -> dict[str, Budget | None]:
    """The searches by name, each with its budget: these are the ids of what they find."""
    budgets: tuple[Budget | None, ...] = job.plan.budgets or (None,)
    prefix = "pruned-" if pruned else ""
    return {f"{prefix}search-{number}": budget for number, budget in enumerate(budgets, start=1)}


def found_ids(job: Job, label: str) -> list[str]:
    """The ids of what a search finds: its own name, or its proposals where a choice follows, the likeliest first."""
    if not job.config.chooses or not label.startswith("search-"):
        return [label]
    sources = [THETA, *(f"draw-{number}" for number in range(1, job.config.choice.draws + 1))]
    return [proposal_id(label, source) for source in sources]


def proposal_id(label: str, source: str) -> str:
    """The id of what ``source`` proposes for the budget of the search with that label.

    >>> proposal_id("search-2", "ilp-2")
    'pool-2-ilp-2'
    """
    return f"{label.replace('search', 'pool')}-{source}"


def drawn_ids(label: str, section: SearchSection, epoch: int) -> list[str]:
    """The ids of the architectures that are drawn from a search after an epoch, numbered from 1."""
    if not section.sample_every or epoch % section.sample_every:
        return []
    name = label.replace("search", "sampled")
    return [f"{name}-epoch{epoch}-{number}" for number in range(1, section.samples + 1)]
