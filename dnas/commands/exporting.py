"""The command ``export``: the trained net of an assignment, or a switchable net, for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dnas.commands.exporting_bits import check_format, check_seed, export_bits, switchable_nets
from dnas.commands.terminal import show, show_json
from dnas.config.file import load_job
from dnas.export.fixed_layers import ExportedFile
from dnas.export.formats import NET_EXPORTERS, PACKED, ExportOptions, NetExporter
from dnas.export.save import save_packed
from dnas.export.stored import StoredNet
from dnas.export.targets import find_target
from dnas.jobs.job import load_network, load_splits
from dnas.jobs.normalisation import stored_preprocessing
from dnas.jobs.stored_nets import stored_net, stored_switchable
from dnas.quantization.conversion import QuantizerChoice
from dnas.training.task import task_of
from dnas.training.trainer import inputs_of
from results.events import Measured
from results.run.folder import Run
from results.tables.export import EXPORTERS
from search_spaces.assignments import BitAssignment, check_fits
from search_spaces.errors import InputError, nearest, quoted
from search_spaces.metrics import metric_of, validation_of
from search_spaces.network.graph import read_graph
from search_spaces.provenance import Profile


def export(
    folder: Path,
    name: str | None,
    format: str,
    out: Path,
    as_json: bool,
    seed: int | None = None,
    options: ExportOptions | None = None,
) -> None:
    """Write an assignment in a format that other tools read, or its trained net; or a whole switchable net.

    Without ``name`` that is the last switchable net of the run, a measured one where there is one. ``seed`` says which
    trained net (the first).
    """
    options = options or ExportOptions()
    _check_options(format, seed, options)
    check_format(out, format, () if format in EXPORTERS else _find(format).suffixes)
    run = Run.open(folder)
    assignments = run.assignments()
    nets = switchable_nets(assignments)
    measured = switchable_nets({name: item for name, item in assignments.items() if validation_of(item.metrics)})
    if name is None and not nets:
        raise InputError(
            f"{folder} has no switchable net; name an assignment, or make one with: dnas finalise {quoted(folder)}"
        )
    if format in EXPORTERS:
        written = [_Written(export_bits(run, name or (measured or nets)[-1], format, out), "")]
    elif name is None or name in nets:
        written = _export_net(run, name or (measured or nets)[-1], format, out, seed or 0, options)
    else:
        written = [_export_one(run, run.assignment(run.complete_id(name)), format, out, seed or 0, options)]
    if as_json:
        show_json(written[0].told if len(written) == 1 else [file.told for file in written])
    else:
        show(*(f"written: {file.told['file']}{file.words}" for file in written))


def _check_options(format: str, seed: int | None, options: ExportOptions) -> None:
    """Refuse an unknown format, and options that it cannot take."""
    exporter = None if format in EXPORTERS else _find(format)
    for name in options.given:
        if exporter is None or name not in exporter.takes:
            able = " or ".join(known for known, found in NET_EXPORTERS.items() if name in found.takes)
            raise InputError(f"the format '{format}' {_UNABLE[name].format(able=able)}")
    if options.target is not None:
        find_target(options.target)
    if seed is not None and not (exporter and exporter.trained):
        raise InputError(f"the format '{format}' holds nothing of a trained net; leave --seed out")


def _find(format: str) -> NetExporter:
    if format not in NET_EXPORTERS and ":" not in format:
        known = [*EXPORTERS, *NET_EXPORTERS]
        raise InputError(f"unknown format '{format}'; choose one of {', '.join(known)}{nearest(format, known)}")
    return NET_EXPORTERS.find(format)


_IMAGES = 64
_UNABLE = {
    "normalise": (
        "holds no operations, so it cannot normalise; use --format {able}, or the mean and std that the file tells"
    ),
    "residual_bits": "quantizes no sums; leave --residual-bits out, or use --format {able}",
    "target": "is the same for every runtime; leave --target out, or use --format {able}",
}


@dataclass(frozen=True)
class _Written:
    """What is told of a file, as JSON and in words."""

    told: Mapping[str, Any]
    words: str


def _export_net(run: Run, name: str, format: str, out: Path, seed: int, options: ExportOptions) -> list[_Written]:
    """A switchable net: one packed file of all profiles, or a file for each."""
    profiles = {
        item.provenance.profile: item
        for item in run.assignments().values()
        if isinstance(item.provenance, Profile) and item.provenance.net == name
    }
    some = next(iter(profiles.values()))
    if format == PACKED:
        return [_packed_net(run, name, some, out, seed)]
    return [
        _export_one(run, item, format, out.with_stem(f"{out.stem}-{key}"), seed, options)
        for key, item in profiles.items()
    ]


def _packed_net(run: Run, name: str, profile: BitAssignment, out: Path, seed: int) -> _Written:
    check_seed(profile, seed)
    config = load_job(run.job_file())
    network = load_network(config).module
    net = stored_switchable(run, network, read_graph(network, profile.model.example), name, seed)
    model = {"source": config.model.source, "arguments": config.model.arguments}
    packed = save_packed(out, net, model=model, preprocessing=stored_preprocessing(run))
    largest = max(item.cost("size_bytes") for item in net.profiles.values())
    sizes = {"tensor_bytes": packed.tensor_bytes, "header_bytes": packed.header_bytes}
    told = {"net": name, "profiles": list(net.profiles), "format": PACKED, "file": str(out), **sizes}
    told["seed"] = seed
    words = (
        f" ({packed.tensor_bytes:,} bytes of tensors for {len(net.profiles)} profiles, "
        f"{packed.tensor_bytes / largest:.2f}x the largest alone; {packed.header_bytes:,} of header)\n"
        f"  the net of seed {seed}"
    )
    return _Written(told, words)


def _export_one(
    run: Run, assignment: BitAssignment, format: str, out: Path, seed: int, options: ExportOptions
) -> _Written:
    told: dict[str, Any] = {"assignment": assignment.id, "format": format, "file": str(out)}
    exporter, net = _find(format), load_stored(run, assignment, seed)
    net = net if options.residual_bits is None else replace(net, images=_images(run))
    file = exporter.write(out, net, options)
    found, words = _packed_file(net, file) if format == PACKED else _net_file(file)
    if not exporter.trained:
        return _Written({**told, **found}, words)
    measured = {f"val_{metric_of(net.assignment.metrics).name}": net.score}
    return _Written({**told, **found, "seed": seed, **measured}, words + _origin(net))


def _packed_file(net: StoredNet, file: ExportedFile) -> tuple[dict[str, Any], str]:
    tensor_bytes, header_bytes = file.ideal_bytes or 0, file.header_bytes or 0
    expected = int(net.assignment.cost["size_bytes"])
    other = "" if tensor_bytes == expected else f" of its largest net: {expected:,}"
    found = {"tensor_bytes": tensor_bytes, "header_bytes": header_bytes}
    return found, f" ({tensor_bytes:,} bytes of tensors, size_bytes{other}; {header_bytes:,} of header)"


def _net_file(file: ExportedFile) -> tuple[dict[str, Any], str]:
    ideal = "" if file.ideal_bytes is None else f"; size_bytes is {file.ideal_bytes:,}"
    found: dict[str, Any] = {
        "file_bytes": file.file_bytes,
        "size_bytes": file.ideal_bytes,
        "left_out": dict(file.left_out),
    }
    if file.layers:
        found["layers"] = {name: asdict(layer) for name, layer in file.layers.items()}
    lines = [f"not in the file: {name}: {why}" for name, why in file.left_out.items()]
    lines += [f"{name}: {layer.words}" for name, layer in file.layers.items()]
    return found, f" ({file.file_bytes:,} bytes{ideal})" + "".join(f"\n  {line}" for line in (*lines, *file.notes))


def _origin(net: StoredNet) -> str:
    """Which net it is and what it reaches, and what the reader of the file does not learn from it."""
    metric = metric_of(net.assignment.metrics)
    reached = "" if net.score is None else f", {metric.told(net.score)} on validation"
    silent = (
        "" if net.preprocessing else "; how to normalise its inputs is not known here, so the file does not tell it"
    )
    return f"\n  the net of seed {net.seed}{reached}{silent}"


def _score_of(run: Run, assignment: BitAssignment, seed: int) -> float | None:
    """What the net of one seed reached on validation, as the journal tells it."""
    names = {assignment.id, assignment.metrics.get("same_as")}
    found = [event for event in run.journal.events() if isinstance(event, Measured)]
    return next((event.val for event in found if event.assignment in names and event.seed == seed), None)


def _images(run: Run) -> Any:
    """Inputs of validation images of the run's job, whose ranges stand for all."""
    config = load_job(run.job_file())
    (inputs,) = inputs_of(load_splits(config).val.batches(_IMAGES), 1, task=task_of(config.task))
    return inputs


def load_stored(run: Run, assignment: BitAssignment, seed: int = 0) -> StoredNet:
    """The net of a seed that was measured for ``assignment``."""
    check_seed(assignment, seed)
    config = load_job(run.job_file())
    network, section = load_network(config).module, config.quantizer
    choice = QuantizerChoice(section.weights, section.activations, section.per_channel)
    if assignment.provenance.net:  # a profile of a switchable net, which has quantizers of its own
        choice = QuantizerChoice.of(assignment)
    graph = read_graph(network, assignment.model.example)
    check_fits(assignment, graph)
    stored = stored_net(run, network, graph, assignment, choice, seed)
    score = _score_of(run, assignment, seed)
    model = {"source": config.model.source, "arguments": config.model.arguments}
    return StoredNet(stored, graph, assignment, choice, model, stored_preprocessing(run), seed, score)
