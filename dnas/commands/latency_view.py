"""The command that measures latencies: its table as a file, the capability file beside it, what it tells of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from dnas.commands.display import open_display
from dnas.commands.options import capability_file, times_file
from dnas.commands.signals import Interrupted
from dnas.commands.terminal import show, show_json, tell
from dnas.commands.written import input_shape_of
from dnas.config.file import load_job
from dnas.jobs.doctor import Shape, default_input_shape
from dnas.jobs.job import data_shape, load_network
from dnas.jobs.stages.timing import table_of, time_run
from dnas.latency.engines import FLOAT, find_engine
from dnas.latency.measure import Effort, measure_table
from dnas.latency.nets import CHOICE
from dnas.latency.places import Place
from dnas.latency.sums import capability_of, predicted_ms
from dnas.quantization.conversion import QuantizerChoice
from results.files import write_json
from results.pictures.plot_data import bit_text
from results.run.folder import Run
from results.run.layout import FRONT_JSON, is_run
from results.tables.plain import PlainTable
from results.units import number_text, share_text
from search_spaces.assignments import LayerBits
from search_spaces.costs.latency import LatencyTable
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.layers import LayerGraph
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph

_SECONDS_BETWEEN_LINES = 2.0


def _check_spares(folder: Path, out: Path) -> None:
    """Refuse to write over the table that the run in ``folder`` was priced by."""
    own = load_job(Run.open(folder).job_file()).costs.latency_table if is_run(folder) else None
    if own and Path(own).resolve() == out.resolve():
        raise InputError(f"{out} is the table that the run {folder} goes by; name another file with --out")


def bench(
    subject: str, folder: Path, runtime: str, place: Place, shape: str | None, out: Path, effort: Effort, as_json: bool
) -> None:
    """Measure the network of a source or of the run in ``folder``; write the table and its capability file."""
    engine = find_engine(runtime, place)
    _check_spares(folder, out)
    network, given, choice = _subject(subject, folder, shape)
    graph = read_graph(network, given)
    with _stoppable(times_file(out)) as times:
        table = measure_table(
            network,
            graph,
            engine,
            place,
            model=subject,
            choice=choice,
            effort=effort,
            progress=_progress(),
            keep=times,
        )
    capability = capability_file(out)
    write_json(out, table.to_json())
    write_json(capability, capability_of(table, graph))
    times.unlink(missing_ok=True)
    timed = _timed(folder, table, graph, as_json) if (folder / FRONT_JSON).is_file() else {}
    if as_json:
        show_json({**table.to_json(), "file": str(out), "capability": str(capability), "nets": timed})
        return
    show(_widths(table, graph), "", *_sentences(table), f"written: {out} and {capability}")
    if timed:
        show("", _nets(timed), _kept(folder, table))


@contextmanager
def _stoppable(times: Path) -> Iterator[Path]:
    """Tell how to go on where the block is interrupted once times are kept."""
    try:
        yield times
    except KeyboardInterrupt as error:
        if not times.exists():
            raise
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        words = f"interrupted; what was timed is kept in {times}, and the same command goes on with it"
        raise Interrupted(words, number) from error


def _timed(folder: Path, table: LatencyTable, graph: LayerGraph, as_json: bool) -> dict[str, dict[str, float]]:
    """The nets of a run, timed, beside what the table says of them; kept in the run."""
    with Run.open(folder, write=True) as run, open_display(as_json) as display:
        measured = time_run(run, table, display.report)
        layers = {name: run.assignment(name).layers for name in measured}
    return {
        name: {"predicted_ms": predicted_ms(table, graph, layers[name]), "measured_ms": ms}
        for name, ms in measured.items()
    }


def _kept(folder: Path, table: LatencyTable) -> str:
    """Whether the run shows these times on its front, which has those where its own table was made."""
    own = table_of(load_job(Run.open(folder).job_file()))
    if own is None or (own.where, own.processor) == (table.where, table.processor):
        return f"kept in {folder}"
    return f"kept in {folder}, whose front shows those in {own.where}, {own.processor}, as its table"


def _nets(timed: Mapping[str, Mapping[str, float]]) -> PlainTable:
    shown = PlainTable()
    shown.add_column("assignment", fold=True)
    for heading in ("ms by the table", "ms measured"):
        shown.add_column(heading, right=True)
    for name, ms in timed.items():
        shown.add_row(name, *map(number_text, ms.values()))
    return shown


def _subject(subject: str, folder: Path, shape: str | None) -> tuple[nn.Module, Shape, QuantizerChoice]:
    """The network in eval mode, the shape of one input, and the quantizers: those of a run's job, or the usual ones."""
    given = input_shape_of(shape)
    if is_run(folder):
        config = load_job(Run.open(folder).job_file())
        if given not in (None, data_shape(config)):
            raise InputError(
                f"--input-shape {shape}: the nets of {folder} take inputs of {data_shape(config)}; leave it out, or "
                f"name the network itself, {config.model.source}"
            )
        own = config.quantizer
        choice = QuantizerChoice(own.weights, own.activations, own.per_channel)
        return load_network(config).module.eval(), data_shape(config), choice
    network = load_model(subject).module.eval()
    return network, given or default_input_shape(network, subject), CHOICE


def _progress() -> Callable[[str, float], None]:
    """Tells on stderr how far it is, at first and now and then; the rest takes as long as what was done since."""
    begun: list[tuple[float, float]] = []
    last = [0.0]

    def told(what: str, share: float) -> None:
        now = time.monotonic()
        if begun and now - last[0] < _SECONDS_BETWEEN_LINES:
            return
        if not begun:
            begun.append((now, share))
        last[0], (start, before) = now, begun[0]
        left = (now - start) * (1 - share) / (share - before) if share > before else None
        tell(f"{what}: {share_text(share, left)}")

    return told


def _widths(table: LatencyTable, graph: LayerGraph) -> PlainTable:
    """Each width in every layer: what the net takes."""
    shown = PlainTable(f"{table.model} in {table.where}, {table.processor}", underlined=False)
    shown.add_column("every layer at")
    for heading in ("ms", "times faster"):
        shown.add_column(heading, right=True)
    times = {pair: predicted_ms(table, graph, _uniform(graph, pair)) for pair in table.pairs}
    for pair, ms in sorted(times.items(), key=lambda item: -item[1]):
        shown.add_row(_pair(pair), number_text(ms), f"{times[FLOAT] / ms:.2f}")
    return shown


def _uniform(graph: LayerGraph, pair: Pair) -> dict[str, LayerBits]:
    return {spec.name: LayerBits(*pair) for spec in graph.layers}


def _sentences(table: LatencyTable) -> list[str]:
    words = []
    if table.useless:
        words.append(f"no faster than wider widths: {', '.join(map(_pair, table.useless))}")
    error, rank = table.median_error, table.rank_correlation
    told = f"median error {100 * (error or 0):.1f} %"
    told += "" if rank is None else f", rank correlation {rank:.2f}"
    words.append(f"{len(table.checked)} nets of random widths and filters, of which it was not made: {told}")
    words.append(f"times of a net lie {100 * table.spread:.0f} % apart between the 10 % and the 90 % of rounds")
    return words


def _pair(pair: Pair) -> str:
    return "fp32" if pair == FLOAT else f"W{bit_text(pair[0])}/A{bit_text(pair[1])}"
