"""Single nets timed where a table was made, to stand beside what the table says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from dnas.export.stored import StoredNet
from dnas.latency.clock import Timing, take_turns
from dnas.latency.engines import Run, clock_of, find_engine, processor_name
from dnas.latency.places import Place
from search_spaces.costs.latency import LatencyTable
from search_spaces.errors import InputError

MakeNet = Callable[[], StoredNet]
_AT_ONCE = 8


def hindrance(table: LatencyTable) -> str:
    """Why nets cannot be timed here as the table was made; empty where they can."""
    place = Place(table.device, table.threads)
    try:
        find_engine(table.runtime, place)
    except InputError as error:
        return str(error)
    here = processor_name(place)
    return "" if here == table.processor else f"this is a {here}, and the table is of a {table.processor}"


def time_nets(
    table: LatencyTable, nets: Mapping[str, MakeNet], refused: Callable[[str, InputError], None]
) -> Iterator[tuple[str, Timing]]:
    """What nets take in the runtime of ``table``; some take turns with one another, and are told of when they are done.

    One that the runtime cannot run is ``refused``.
    """
    place = Place(table.device, table.threads)
    engine = find_engine(table.runtime, place)
    names = list(nets)
    for start in range(0, len(names), _AT_ONCE):
        runs: dict[str, Run] = {}
        for name in names[start : start + _AT_ONCE]:
            try:
                net = nets[name]()
                assert net.images is not None
                runs[name] = engine.load(net, net.images[:1].numpy(), place)
            except InputError as error:
                refused(name, error)
        yield from take_turns(runs, table.rounds, clock_of(place)).items()
