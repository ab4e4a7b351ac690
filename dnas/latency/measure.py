"""A latency table by measuring: each distinct layer shape alone, then whole nets of random widths and filters.

Some of the whole nets calibrate the layers' times (:mod:`dnas.latency.fit`); the others are kept for looking at how
far the table's sums are off.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from dnas.latency.clock import Clock, Timing, take_turns
from dnas.latency.engines import EIGHT, FLOAT, Engine, Loader, Run, clock_of, processor_name
from dnas.latency.kept import KeptTimes
from dnas.latency.nets import CHOICE, NetMaker, random_layers
from dnas.latency.places import Place
from dnas.latency.shapes import LAYER, Alone, LayerShape, pruned_sides, shapes_by_layer, small_input
from dnas.latency.sums import GAIN, calibrated, predicted_ms
from dnas.quantization.conversion import QuantizerChoice
from search_spaces.assignments import LayerBits
from search_spaces.costs.latency import CheckedNet, LatencyRow, LatencyTable, layer_words
from search_spaces.fields import Pair
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph

Key = TypeVar("Key", bound=Hashable)
Layers = Mapping[str, LayerBits]
Size = tuple[int, int]
Progress = Callable[[str, float], None]
"""Told what is done, and the share of all work that is behind it."""

_AT_ONCE = 8
"""Whole nets that are in memory together."""
_NET_WORK = 8.0
"""Work of a whole net, where that of one layer is 1."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds of each, whole nets that calibrate, and whole nets that are only looked at."""

    rounds: int = 30
    nets: int = 16
    checks: int = 20
    seed: int = 0


def measure_table(
    network: nn.Module,
    graph: LayerGraph,
    engine: Engine,
    place: Place,
    *,
    model: str,
    choice: QuantizerChoice = CHOICE,
    effort: Effort | None = None,
    progress: Progress = lambda what, share: None,
    clock: Clock | None = None,
    keep: Path | None = None,
) -> LatencyTable:
    """Make the table of a float ``network`` (in eval mode, left untouched) in a runtime.

    ``model`` names the network in the table, ``choice`` the quantizers of its nets. What was timed is kept in the file
    ``keep``, by which a second call goes on with a measurement that was stopped. Raises :class:`InputError` for a net
    that the runtime cannot run, and for a file of another measurement.
    """
    made = _Measurement(
        network, graph, engine, place, model, choice, effort or Effort(), progress, clock or clock_of(place)
    )
    made.kept = KeptTimes(keep, made.described())
    return made.table()


@dataclass
class _Measurement:
    """One table in the making."""

    network: nn.Module
    graph: LayerGraph
    engine: Engine
    place: Place
    model: str
    choice: QuantizerChoice
    effort: Effort
    progress: Progress
    clock: Clock
    done: float = 0.0
    always_ms: float = 0.0
    kept: KeptTimes = field(default_factory=KeptTimes)
    spreads: list[float] = field(default_factory=list)

    @cached_property
    def maker(self) -> NetMaker:
        return NetMaker(self.network, self.graph, self.choice)

    @cached_property
    def always(self) -> Layers:
        """The net that is timed with all others."""
        return self.maker.uniform(FLOAT)

    @cached_property
    def load(self) -> Loader:
        return self.engine.loader(self.maker.stored(self.maker.uniform(EIGHT)), self.place)

    @cached_property
    def shapes(self) -> dict[str, LayerShape]:
        return shapes_by_layer(self.maker.stored(self.maker.uniform(FLOAT)).network, self.graph)

    @cached_property
    def layers_of(self) -> dict[LayerShape, list[str]]:
        found: dict[LayerShape, list[str]] = {}
        for name, shape in self.shapes.items():
            found.setdefault(shape, []).append(name)
        return found

    def described(self) -> dict[str, Any]:
        """What times depend on, in plain values: of other ones none are taken over."""
        layers = repr([(name, self.graph[name].calls, shape) for name, shape in self.shapes.items()])
        return {
            "model": self.model,
            "runtime": self.engine.name,
            "version": self.engine.version(),
            "device": self.place.device,
            "threads": self.place.threads,
            "processor": processor_name(self.place),
            "input_shape": list(self.graph.input_shape),
            "quantizers": list(astuple(self.choice)),
            "layers": hashlib.sha256(layers.encode()).hexdigest(),
            **asdict(self.effort),
        }

    def table(self) -> LatencyTable:
        """Everything, in order."""
        self._plan()
        uniform = self._whole([self.maker.uniform(pair) for pair in self._tried], "uniform nets")
        whole = dict(zip(self._tried, uniform, strict=True))
        useless = tuple(pair for pair in self.engine.narrower if not _gains(whole, pair))
        self.pairs = tuple(pair for pair in self._tried if pair not in useless)
        alone = self._table(useless)
        draw = random.Random(self.effort.seed)
        nets = [self._random(draw) for _ in range(self.effort.nets)]
        times = [*(whole[pair] for pair in self.pairs), *self._whole(nets, "whole nets")]
        nets = [*(self.maker.uniform(pair) for pair in self.pairs), *nets]
        return self._checked(calibrated(alone, self.graph, list(self.layers_of.values()), nets, times), draw)

    def _table(self, useless: tuple[Pair, ...]) -> LatencyTable:
        """The table of layers alone."""
        rows = self._rows(self._alone())
        return LatencyTable(
            runtime=self.engine.name,
            version=self.engine.version(),
            device=self.place.device,
            processor=processor_name(self.place),
            threads=self.place.threads,
            model=self.model,
            input_shape=tuple(self.graph.input_shape),
            rounds=self.effort.rounds,
            spread=float(np.median(self.spreads)),
            rest_ms=0.0,
            rows=tuple(rows),
            layers={spec.name: layer_words(spec) for spec in self.graph.layers},
            useless=useless,
        )

    def _plan(self) -> None:
        nets = len(self._tried) + self.effort.nets + self.effort.checks
        self.work = sum(map(self._work_alone, self.layers_of)) + _NET_WORK * nets

    def _work_alone(self, shape: LayerShape) -> float:
        return float(len(self._sizes(shape)) * len(self.engine.pairs))

    @property
    def _tried(self) -> list[Pair]:
        return [*self.engine.pairs, *self.engine.narrower]

    def _sizes(self, shape: LayerShape) -> list[Size]:
        return shape.sizes(*pruned_sides(self.graph, self.layers_of[shape]))

    def _tell(self, what: str, work: float) -> None:
        self.done += work
        self.progress(what, min(1.0, self.done / self.work))

    def _times(self, name: str, loads: Mapping[Key, Callable[[], Run]], work: float) -> dict[Key, Timing]:
        """Times of the runs that ``loads`` make, which take turns; the kept ones where they did so before."""
        known = self.kept.find(name, len(loads))
        if known is None:
            runs = {}
            for key, load in loads.items():
                runs[key] = load()
                self._tell(name, work / len(loads))
            known = list(take_turns(runs, self.effort.rounds, self.clock).values())
            self.kept.keep(name, known)
        else:
            self.done += work
        return dict(zip(loads, known, strict=True))

    def _alone(self) -> dict[tuple[LayerShape, Pair, Size], float]:
        """Milliseconds of each shape at each size and width, without what is around it."""
        found = {}
        for number, shape in enumerate(self.layers_of, start=1):
            sizes = self._sizes(shape)
            load = self._small(shape)
            around = sorted({(inputs, 0) for inputs, _ in sizes}, reverse=True)
            timed: list[tuple[Pair | None, Size]] = [(None, size) for size in around]
            timed += [(pair, size) for pair in self.pairs for size in sizes]
            loads = {key: partial(load, *key) for key in timed}
            times = self._times(f"layer shape {number} of {len(self.layers_of)}", loads, self._work_alone(shape))
            calls = self.graph[self.layers_of[shape][0]].calls
            for pair in self.pairs:
                for size in sizes:
                    ms = times[pair, size].ms - times[None, (size[0], 0)].ms
                    found[shape, pair, size] = calls * max(ms, 0.01 * times[pair, size].ms)
        return found

    def _small(self, shape: LayerShape) -> Callable[[Pair | None, Size], Run]:
        """What loads a shape alone, at some widths (None: what is around it) and size."""
        loaders: dict[bool, Loader] = {}

        def load(pair: Pair | None, size: Size) -> Run:
            inputs, filters = size
            net = Alone(shape.module(inputs, filters) if pair else None, shape, inputs).eval()
            maker = NetMaker(net, read_graph(net, small_input(shape, inputs)), self.choice)
            specs = maker.graph.layers
            if (pair is None) not in loaders:
                base = {spec.name: LayerBits(*(EIGHT if spec.name == LAYER else FLOAT)) for spec in specs}
                loaders[pair is None] = self.engine.loader(maker.stored(base), self.place)
            layers = {spec.name: LayerBits(*(pair if pair and spec.name == LAYER else FLOAT)) for spec in specs}
            return loaders[pair is None](maker.stored(layers), maker.images[:1].numpy())

        return load

    def _rows(self, alone: Mapping[tuple[LayerShape, Pair, Size], float]) -> list[LatencyRow]:
        return [
            LatencyRow(layer=name, inputs=i, filters=f, weight_bits=w, activation_bits=a, latency_ms=ms)
            for (shape, (w, a), (i, f)), ms in alone.items()
            for name in self.layers_of[shape]
        ]

    def _random(self, draw: random.Random) -> Layers:
        return random_layers(self.graph, self.pairs, draw, prunes=bool(self.graph.channels.groups))

    def _whole(self, nets: Sequence[Layers], what: str) -> list[float]:
        """Milliseconds of whole nets, as if all of them had been timed when the first were.

        A machine is not as fast at all times, so that one net takes its turns among all others.
        """
        found: list[float] = []
        for start in range(0, len(nets), _AT_ONCE):
            some = dict(enumerate(nets[start : start + _AT_ONCE], start=start + 1))
            loads = {number: partial(self._loaded, layers) for number, layers in (some | {0: self.always}).items()}
            times = self._times(f"{what} {min(some)} to {max(some)} of {len(nets)}", loads, _NET_WORK * len(some))
            always = times.pop(0).ms
            self.always_ms = self.always_ms or always
            found += [timing.ms * self.always_ms / always for timing in times.values()]
            self.spreads += [timing.spread for timing in times.values()]
        return found

    def _loaded(self, layers: Layers) -> Run:
        return self.load(self.maker.stored(layers), self.maker.images[:1].numpy())

    def _checked(self, table: LatencyTable, draw: random.Random) -> LatencyTable:
        nets = [self._random(draw) for _ in range(self.effort.checks)]
        measured = self._whole(nets, "nets to look at")
        checked = tuple(
            CheckedNet(predicted_ms=predicted_ms(table, self.graph, layers), measured_ms=ms)
            for layers, ms in zip(nets, measured, strict=True)
        )
        return table.model_copy(update={"checked": checked, "spread": float(np.median(self.spreads))})


def _gains(whole: Mapping[Pair, float], pair: Pair) -> bool:
    """Whether a net of these widths is faster than those of all wider ones."""
    wider = [ms for other, ms in whole.items() if other != pair and other[0] >= pair[0] and other[1] >= pair[1]]
    return whole[pair] < (1 - GAIN) * min(wider)
