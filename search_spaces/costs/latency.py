"""Latencies that were measured: of whole layers, or of layers at several numbers of channels, which pruning can aim at.

A table that ``dnas bench-latency`` made tells what it is of (runtime, device, threads, network); rows that a user wrote
(layer, weight_bits, activation_bits, latency_ms) tell nothing else, and hold for whole layers at exactly these widths.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field
from scipy.stats import spearmanr

from search_spaces.errors import InputError, quoted, unreadable
from search_spaces.fields import Pair
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.plain_json import parse_json
from search_spaces.records import Amount, Count, Index, Record, check_schema
from search_spaces.user_files import read_regular

SCHEMA = "dnas.latency/1"
LANES = 8
"""Runtimes compute so many channels at once, so a layer takes what it takes at the next multiple of it."""


class LatencyRow(Record):
    """One layer at one (weight, activation) width, with so many input channels and filters.

    ``latency_ms`` is of all its calls for one sample.
    """

    layer: str
    inputs: Count
    filters: Count
    weight_bits: Index
    activation_bits: Index
    latency_ms: Amount


class CheckedNet(Record):
    """A whole net of random widths and filters, of which the table was not made."""

    predicted_ms: Amount
    measured_ms: Amount


class LatencyTable(Record):
    """What a network takes in one runtime on one machine: the sum over its layers, and ``rest_ms``.

    Times are in milliseconds for one sample. ``spread`` is how far the nets' times lie apart from round to round, as a
    share of their median, and ``rounds`` how often each was taken. ``layers`` says what each layer is, channels apart
    (:func:`layer_words`). ``useless`` are widths that are no faster than wider
    ones. ``checked`` are nets that were kept for looking at its errors.
    """

    schema_version: str = Field(default=SCHEMA, alias="schema")
    runtime: str
    version: str
    device: str
    processor: str
    threads: Count
    model: str
    input_shape: tuple[Count, ...]
    rounds: Count
    spread: Amount
    rest_ms: Amount
    rows: tuple[LatencyRow, ...]
    layers: dict[str, str] = Field(default_factory=dict)
    useless: tuple[Pair, ...] = ()
    checked: tuple[CheckedNet, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of its file."""
        return self.model_dump(by_alias=True)

    @property
    def where(self) -> str:
        """Runtime, device and threads in words."""
        return f"{self.runtime} on {self.device} with {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The (weight, activation) widths that it has, ascending."""
        return tuple(sorted({(row.weight_bits, row.activation_bits) for row in self.rows}))

    @property
    def median_error(self) -> float | None:
        """The median of the checked nets' relative errors; None where none was checked."""
        errors = [abs(net.predicted_ms / net.measured_ms - 1) for net in self.checked if net.measured_ms]
        return median(errors) if errors else None

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, over the checked nets; None where they are too few or all alike."""
        found = [[getattr(net, name) for net in self.checked] for name in ("predicted_ms", "measured_ms")]
        if min(len(set(values)) for values in found) < 2:
            return None
        return float(spearmanr(*found).statistic)


class Latencies:
    """What a layer takes at some widths and channels, as a table says.

    ``source`` names the table in errors. ``shrinks`` says whether it knows what fewer channels take.
    """

    shrinks = False

    def __init__(self, source: str, rows: Mapping[tuple[str, int, int], float]) -> None:
        self.source, self._rows = source, rows

    def of_layer(self, spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
        """Milliseconds of one layer; :class:`InputError` for what the table does not hold."""
        try:
            return self._rows[spec.name, weight_bits, activation_bits]
        except KeyError:
            raise self._missing(spec, weight_bits, activation_bits) from None

    def of_rest(self, graph: LayerGraph) -> float:
        """Milliseconds of everything outside the layers."""
        return 0.0

    def _missing(self, spec: LayerSpec, weight_bits: int, activation_bits: int) -> InputError:
        return InputError(
            f"latency table {self.source} has no row for layer '{spec.name}' at {weight_bits} weight bits and "
            f"{activation_bits} activation bits"
        )


class MeasuredLatencies(Latencies):
    """Those of a table that was made by measuring.

    Widths that it lacks take what the fastest wider ones take, for a runtime can hold narrow codes in a wider type and
    is not credited with more. Between measured numbers of channels it goes in straight lines, never down; below the
    fewest it stays.
    """

    shrinks = True

    def __init__(self, source: str, table: LatencyTable) -> None:
        self.source, self.table = source, table
        found: dict[str, dict[Pair, list[LatencyRow]]] = {}
        for row in table.rows:
            pair = (row.weight_bits, row.activation_bits)
            found.setdefault(row.layer, {}).setdefault(pair, []).append(row)
        self._surfaces = {
            layer: {pair: _Surface.of(f"latency table {source}", rows) for pair, rows in pairs.items()}
            for layer, pairs in found.items()
        }

    def of_layer(self, spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
        """Milliseconds of one layer with as many channels as ``spec`` says."""
        known = self._surfaces.get(spec.name, {})
        fitting = [pair for pair in known if pair[0] >= weight_bits and pair[1] >= activation_bits]
        if not fitting:
            raise self._missing(spec, weight_bits, activation_bits)
        channels = channels_of(spec)
        own = (weight_bits, activation_bits)
        for pair in [own] if own in known else fitting:
            if any(have > most for have, most in zip(channels, known[pair].most, strict=True)):
                raise InputError(
                    f"latency table {self.source} is of a layer '{spec.name}' with {known[pair].most[0]} inputs and "
                    f"{known[pair].most[1]} filters, and not of one with {channels[0]} and {channels[1]}; measure this "
                    "network with: dnas bench-latency"
                )
        return known[own].at(*channels) if own in known else min(known[pair].at(*channels) for pair in fitting)

    def of_rest(self, graph: LayerGraph) -> float:
        """Milliseconds of everything outside the layers.

        :class:`InputError` for inputs of another shape, and for layers of other kernels, places or calls.
        """
        if tuple(graph.input_shape) != self.table.input_shape:
            shapes = ["×".join(map(str, shape)) for shape in (self.table.input_shape, graph.input_shape)]
            raise InputError(
                f"latency table {self.source} is of inputs of {shapes[0]}, and this network's are {shapes[1]}; measure "
                f"it with: dnas bench-latency {quoted(self.table.model)} "
                f"--input-shape {','.join(map(str, graph.input_shape))}"
            )
        for spec in graph.layers:
            there, here = self.table.layers.get(spec.name, ""), layer_words(spec)
            if there and there != here:
                raise InputError(
                    f"latency table {self.source} is of a layer '{spec.name}' that is {there}, and this network's is "
                    f"{here}; measure it with: dnas bench-latency"
                )
        return self.table.rest_ms


@dataclass(frozen=True)
class _Surface:
    """Milliseconds (I, F) over ascending numbers of inputs (I,) and filters (F,).

    Of layers whose inputs and filters go together (one filter to a channel) there is one row.
    """

    inputs: np.ndarray
    filters: np.ndarray
    latency_ms: np.ndarray

    @classmethod
    def of(cls, source: str, rows: Sequence[LatencyRow]) -> _Surface:
        """The rows of one layer at one width; :class:`InputError` unless they fill a grid."""
        inputs, filters = sorted({row.inputs for row in rows}), sorted({row.filters for row in rows})
        known = {(row.inputs, row.filters): row.latency_ms for row in rows}
        if len(known) > 1 and len(known) == len(inputs) == len(filters):
            inputs = inputs[-1:]
            known = {(inputs[0], filter): ms for (_, filter), ms in known.items()}
        if len(known) != len(rows) or len(known) != len(inputs) * len(filters):
            raise InputError(
                f"{source}: layer '{rows[0].layer}' does not have one row for each number of inputs and filters"
            )
        grid = np.array([[known[i, f] for f in filters] for i in inputs], dtype=np.float64)
        for axis in (0, 1):  # fewer channels never take longer: what says so is the noise of measuring
            grid = np.maximum.accumulate(grid, axis)
        return cls(np.array(inputs), np.array(filters), grid)

    @cached_property
    def most(self) -> tuple[int, int]:
        """Inputs and filters of the whole layer."""
        return int(self.inputs[-1]), int(self.filters[-1])

    def at(self, inputs: int, filters: int) -> float:
        """Milliseconds at any numbers up to those of the whole layer."""
        wide, tall = (min(most, -(-n // LANES) * LANES) for n, most in zip((inputs, filters), self.most, strict=True))
        by_inputs = [np.interp(tall, self.filters, row) for row in self.latency_ms]
        return float(np.interp(wide, self.inputs, by_inputs))


def channels_of(spec: LayerSpec) -> tuple[int, int]:
    """Input channels and filters of a layer."""
    axis = 0 if "Transpose" in spec.kind else 1
    return spec.weight_shape[axis] * (1 if "Transpose" in spec.kind else spec.groups), spec.out_channels


def layer_words(spec: LayerSpec) -> str:
    """What a layer is beside its channels, which pruning changes: kind, kernel, places of its output, calls."""
    kernel, places = spec.weight_shape[2:], spec.output_shape[:-1] if spec.kind == "Linear" else spec.output_shape[1:]
    words = [spec.kind, *(["×".join(map(str, kernel))] if kernel else [])]
    words += ["at", "×".join(map(str, places)), "places"] if places else []
    return " ".join(words) + (f", called {spec.calls} times" if spec.calls > 1 else "")


def read_table(path: Path) -> LatencyTable:
    """The table that ``dnas bench-latency`` wrote; :class:`InputError` for anything else."""
    return _table_of(path, _parsed(path))


def read_latencies(path: Path) -> Latencies:
    """A table of either kind, CSV or JSON; :class:`InputError` that names the file for anything else."""
    data = _parsed(path)
    if isinstance(data, dict):
        return MeasuredLatencies(str(path), _table_of(path, data))
    try:
        rows = {
            (str(row["layer"]), int(row["weight_bits"]), int(row["activation_bits"])): float(row["latency_ms"])
            for row in data
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"latency table {path} must have the columns layer, weight_bits, activation_bits, latency_ms: {error!r}"
        ) from error
    return Latencies(str(path), rows)


def _parsed(path: Path) -> Any:
    try:
        text = read_regular(path).decode("utf-8")
        return parse_json(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    except OSError as error:
        raise InputError(f"latency table {path}: {unreadable(error)}") from error
    except (csv.Error, ValueError) as error:
        raise InputError(
            f"latency table {path} must have the columns layer, weight_bits, activation_bits, latency_ms: {error!r}"
        ) from error


def _table_of(path: Path, data: Any) -> LatencyTable:
    try:
        check_schema(data, SCHEMA, "a latency table")
        return LatencyTable.read(data)
    except InputError as error:
        raise InputError(f"latency table {path}: {error}") from error
