"""Show a :class:`~dnas.jobs.doctor.DoctorReport` in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from dnas.commands.terminal import amount_text, show, show_json
from dnas.config.fields import Amount
from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.jobs.doctor import (
    FIXED,
    SEARCHED,
    UNSUPPORTED,
    UNUSED,
    ChannelsReport,
    DoctorReport,
    LayerReport,
    Shape,
    default_input_shape,
    examine,
)
from dnas.jobs.job import data_shape, example_of, load_splits
from dnas.training.task import task_of
from results.tables.plain import PlainTable
from search_spaces.errors import InputError
from search_spaces.models.load import load_model
from search_spaces.network.examples import Example

MOST_TIES = 12
MOST_GROUPS = 40
MOST_NAMES = 3


def consult(
    model: str | None, shape: Shape | None, budgets: list[dict[str, Amount]], job: str | None, as_json: bool
) -> bool:
    """Examine the network of a source or of a job, show the report; tell whether it and its budgets can be searched."""
    report = _examined(model, shape, budgets, None if job is None else load_job(job))
    if as_json:
        show_json(report.to_json())
    else:
        show(render_report(report))
    return report.searchable and all(budget.reachable for budget in report.budgets)


def _examined(
    model: str | None, shape: Shape | None, budgets: list[dict[str, Amount]], config: JobConfig | None
) -> DoctorReport:
    if config is None:
        source = model or ""
        network = load_model(source).module
        return examine(network, shape or default_input_shape(network, source), source=source, budgets=budgets)
    source = model or config.model.source
    own = source == config.model.source
    checkpoint = Path(config.model.checkpoint) if own and config.model.checkpoint else None
    network = load_model(source, arguments=config.model.arguments if own else None, checkpoint=checkpoint).module
    return examine(
        network,
        shape or _example(config),
        source=source,
        space=config.space,
        costs=config.costs,
        per_channel=config.quantizer.per_channel,
        budgets=[*config.search.budgets, *budgets],
    )


def _example(config: JobConfig) -> Example:
    """What the job calls its network with; of a task of the user's own the first image tells it."""
    try:
        if ":" in config.task.kind:
            return example_of(load_splits(config), task_of(config.task))
        return data_shape(config)
    except InputError as error:
        raise InputError(f"{error}; or give the shape of one image with --input-shape") from error


def render_report(report: DoctorReport) -> Group:
    """Return all of a report, the layers first and the verdict last."""
    parts: list[RenderableType] = [_layer_table(report), *_others(report), *_couplings(report)]
    parts += [*_channels(report.channels), Text()]
    if report.uniform:
        parts += [_cost_table(report), Text()]
    return Group(*parts, *(Text(line) for line in verdict_lines(report)))


def verdict_lines(report: DoctorReport) -> list[str]:
    """Return in sentences whether the network can be searched and its budgets met, and what is not counted."""
    lines = []
    if report.uncounted_macs:
        lines.append(f"Not counted in any cost: {report.uncounted_macs:,} MACs outside the layers (such as attention).")
    for budget in report.budgets:
        least = " and ".join(f"{name} {amount_text(name, value)}" for name, value in budget.least.items())
        if budget.reachable:
            limits = " and ".join(f"{name} {amount_text(name, value)}" for name, value in budget.limits.items())
            lines.append(f"Budget {budget.budget} ({limits}) can be met; the least possible is {least}.")
        if budget.reason:
            lines.append(f"{budget.reason[0].upper()}{budget.reason[1:]}.")
    lines.append(_parameter_line(report.parameters))
    if report.searchable:
        counts = {status: sum(layer.status == status for layer in report.layers) for status in (SEARCHED, FIXED)}
        lines.append(f"Searchable: {counts[SEARCHED]} layers in {report.decisions} decisions, {counts[FIXED]} fixed.")
    else:
        lines.append(f"Not searchable: {report.reason}.")
    return lines


def _parameter_line(counts: Mapping[str, int]) -> str:
    told = [f"{counts[SEARCHED]:,} searched", f"{counts[FIXED]:,} fixed"]
    told += [f"{counts[UNSUPPORTED]:,} in no layer that can be quantized (fp32)"] if counts[UNSUPPORTED] else []
    told += [f"{counts[UNUSED]:,} unused in eval mode (not deployed)"] if counts[UNUSED] else []
    return f"Parameters: {sum(counts.values()):,}, of which {', '.join(told)}."


def _layer_table(report: DoctorReport) -> PlainTable:
    title = f"{report.source} on {_shape(report.input_shape)}"
    table = PlainTable(title, underlined=False)
    for heading in ("layer", "kind", "input → output"):
        table.add_column(heading, fold=True)
    for heading in ("weights", "MACs"):
        table.add_column(heading, right=True)
    table.add_column("status", fold=True)
    for layer in report.layers:
        numbers = (f"{layer.weights:,}", f"{layer.macs:,}") if layer.kind else (f"{layer.parameters:,}", "")
        shapes = f"{_shape(layer.input_shape)} → {_shape(layer.output_shape)}" if layer.kind else ""
        table.add_row(layer.name, layer.kind, shapes, *numbers, _status(layer), style=_style(layer))
    return table


def _status(layer: LayerReport) -> str:
    if layer.status == SEARCHED:
        group = f" as {layer.decision}" if layer.decision != layer.name else ""
        return f"searched{group}, {layer.choices} choices" + (f" ({layer.reason})" if layer.reason else "")
    if layer.bits is not None:
        widths = "fp32" if layer.bits == (32, 32) else f"W{layer.bits[0]} A{layer.bits[1]}"
        return f"fixed at {widths}: {layer.reason}"
    return f"{layer.status}: {layer.reason}"


def _style(layer: LayerReport) -> str:
    return "" if layer.status == SEARCHED else "dim"


def _others(report: DoctorReport) -> Iterable[Text]:
    """Parameters of no layer, reason by reason."""
    others = report.other_parameters
    lines = []
    for reason in dict.fromkeys(other.reason for other in others):
        alike = [other for other in others if other.reason == reason]
        count = sum(other.parameters for other in alike)
        lines.append(f"{reason}: {count:,} parameters ({_some([other.name for other in alike])})")
    yield from _listing("Parameters outside the layers", lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def _couplings(report: DoctorReport) -> Iterable[Text]:
    if report.couplings_unknown:
        yield Text(f"\nResidual branches and ties are not known: {report.couplings_unknown}.")
    branches = [f"{branch.terminal} ends {', '.join(branch.layers)}" for branch in report.branches]
    yield from _listing("Residual branches that 0 bits can drop", branches)
    yield from _listing("Outputs that are added", [" + ".join(names) for names in report.residual_ties])
    yield from _listing("Layers that read the same tensor", [", ".join(names) for names in report.shared_inputs])


def _listing(title: str, entries: Sequence[str]) -> Iterable[Text]:
    if entries:
        rest = [f"... and {len(entries) - MOST_TIES} more"] if len(entries) > MOST_TIES else []
        yield Text("\n  ".join([f"\n{title}:", *entries[:MOST_TIES], *rest]))


def _channels(channels: ChannelsReport) -> Iterable[RenderableType]:
    """The groups that can lose filters, and below them the layers that keep theirs, reason by reason."""
    if channels.unknown:
        yield Text(f"\nWhich filters can be pruned is not known: {channels.unknown}.")
        return
    groups = channels.groups
    if groups:
        total = sum(group.units for group in groups)
        yield Text(
            f"\nChannel groups that can be pruned: {len(groups)}, with {total:,} units (filters that go together)"
        )
        table = PlainTable(underlined=False)
        table.add_column("  group", fold=True)
        for heading in ("units", "layers"):
            table.add_column(heading, right=True)
        for group in groups[:MOST_GROUPS]:
            table.add_row(f"  {group.name}", f"{group.units:,}", str(len(group.layers)))
        yield table
    if len(groups) > MOST_GROUPS:
        yield Text(f"  ... and {len(groups) - MOST_GROUPS} more; --json lists all")
    yield from _listing("Layers that keep all their filters", _frozen_lines(channels.frozen))


def _frozen_lines(frozen: Mapping[str, str]) -> list[str]:
    """A line per reason: how many layers, and the names of some."""
    lines = []
    for reason in dict.fromkeys(frozen.values()):
        names = [name for name, why in frozen.items() if why == reason]
        shown = _some(names)
        lines.append(f"{reason}: {shown}" if len(names) == 1 else f"{reason}: {len(names)} layers ({shown})")
    return lines


def _cost_table(report: DoctorReport) -> PlainTable:
    names = list(next(iter(report.uniform.values())))
    table = PlainTable(underlined=False)
    table.add_column("every layer at")
    for name in names:
        table.add_column(name, right=True)
    for bits, costs in report.uniform.items():
        known = {name: value for name, value in costs.items() if value is not None}
        amounts = (amount_text(name, known[name]) if name in known else "not known" for name in names)
        table.add_row("fp32" if bits == 32 else f"{bits} bits", *amounts)
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
