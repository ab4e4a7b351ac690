"""The trained nets that a run keeps: one for each measured assignment, one for each switchable net, by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from dnas.quantization.conversion import QuantizerChoice, fixed_copy
from dnas.switchable.net import SwitchableNet
from dnas.training.trainer import with_prefix
from results.events import FloatMeasured
from results.run.folder import Run
from results.run.layout import ASSIGNMENTS, CHECKPOINTS
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, quoted
from search_spaces.layers import LayerGraph
from search_spaces.metrics import validation_of
from search_spaces.provenance import Profile

DIGEST, DIGESTS = "assignment_sha256", "assignments_sha256"
"""What a stored net tells of the assignment that it is of, and a switchable one of those of its profiles."""


def net_file(name: str, seed: int) -> str:
    """The checkpoint of the trained net of an assignment, or of a switchable net, and a seed."""
    return f"net-{name}-seed{seed}"


def stored_net(
    run: Run, network: nn.Module, graph: LayerGraph, assignment: BitAssignment, choice: QuantizerChoice, seed: int
) -> nn.Module:
    """The measured net of an assignment and seed of a run, in eval mode, built from the job's float ``network``."""
    origin = assignment.provenance
    if isinstance(origin, Profile):
        return stored_switchable(run, network, graph, origin.net, seed).alone(origin.profile)
    name = net_file(assignment.metrics.get("same_as", assignment.id), seed)
    saved = run.load_checkpoint(name)
    if saved is None:
        raise InputError(
            _missing(run, f"assignment '{assignment.id}'", measured=validation_of(assignment.metrics) is not None)
        )
    _check_digest(run, name, saved[1].get(DIGEST), assignment)
    fixed = fixed_copy(network, graph, assignment.layers, choice)
    _fill(run, name, saved[0], fixed.load_state_dict)
    return fixed.eval()


def stored_float(run: Run, network: nn.Module, epochs: int) -> nn.Module:
    """The job's float ``network`` as the run pretrained it for so many epochs (0: as it came), in eval mode."""
    if epochs:
        saved = run.load_checkpoint("pretrain")
        if saved is None or saved[1]["epoch"] < epochs:
            lost = any(isinstance(event, FloatMeasured) for event in run.journal.events())
            raise InputError(_missing(run, "the float network", measured=lost))
        _fill(run, "pretrain", with_prefix(saved[0], "network"), network.load_state_dict)
    return network.eval()


def save_switchable(run: Run, net: SwitchableNet, name: str, seed: int) -> None:
    """Keep a switchable net under its name and seed."""
    values: dict[str, Any] = {
        "seed": seed,
        "profiles": {key: profile.assignment.id for key, profile in net.profiles.items()},
        "quantizer": asdict(net.choice),
        "private_norms": net.private_norms,
        DIGESTS: {key: profile.assignment.digest for key, profile in net.profiles.items()},
    }
    run.save_checkpoint(net_file(name, seed), net.tensors(), values)


def stored_switchable(run: Run, network: nn.Module, graph: LayerGraph, name: str, seed: int = 0) -> SwitchableNet:
    """A trained switchable net of a run, in eval mode, its profiles as they were measured.

    ``network`` is the job's float network and ``graph`` its layers. Raises :class:`InputError` where there is none.
    """
    saved = run.load_checkpoint(net_file(name, seed))
    if saved is None:
        own = [item for item in run.assignments().values() if item.provenance.net == name]
        raise InputError(_missing(run, f"'{name}'", measured=any(validation_of(item.metrics) for item in own)))
    tensors, values = saved
    profiles = {key: run.assignment(identity) for key, identity in values["profiles"].items()}
    for key, profile in profiles.items():
        _check_digest(run, net_file(name, seed), values.get(DIGESTS, {}).get(key), profile)
    choice = QuantizerChoice(**values["quantizer"])
    net = SwitchableNet(network, graph, profiles, choice, private_norms=values["private_norms"])
    _fill(run, net_file(name, seed), tensors, net.load_tensors)
    return net.eval()


def save_fixed(run: Run, network: nn.Module, assignment: BitAssignment, seed: int) -> None:
    """Keep the trained net of an assignment and seed, with what tells that it is of this assignment."""
    values = {"seed": seed, DIGEST: assignment.digest}
    run.save_checkpoint(net_file(assignment.id, seed), network.state_dict(), values)


def _check_digest(run: Run, checkpoint: str, told: str | None, assignment: BitAssignment) -> None:
    """:class:`InputError` where a net was trained for other bits; nets of earlier versions do not tell."""
    if told is not None and told != assignment.digest:
        path = run.folder / ASSIGNMENTS / f"{assignment.id}.json"
        raise InputError(
            f"{path} was changed: the net in {CHECKPOINTS}/{checkpoint}.safetensors was trained for other bits; "
            f"restore it from a copy, or remove it and have it made again with: dnas resume {quoted(run.folder)}"
        )


def _fill(run: Run, name: str, tensors: Mapping[str, Tensor], load: Callable[[Mapping[str, Tensor]], object]) -> None:
    """Load a checkpoint into a net; :class:`InputError` where it holds NaN or the tensors of another net."""
    try:
        for key, tensor in tensors.items():
            if tensor.isnan().any():  # infinity may be a mask
                raise InputError(f"'{key}' holds NaN")
        load(tensors)
    except (InputError, RuntimeError) as error:
        why = str(error) if isinstance(error, InputError) else "its tensors are not those of this net"
        path = run.folder / CHECKPOINTS / f"{name}.safetensors"
        raise InputError(
            f"the checkpoint {path} cannot be used: {why}; remove it, then have it made again with: dnas resume "
            f"{run.folder}"
        ) from error


def _missing(run: Run, what: str, *, measured: bool) -> str:
    """Why there is no trained net of ``what``, and the command that makes one."""
    lost = f"the trained net of {what} is gone from {run.folder}; train it again with: dnas resume {quoted(run.folder)}"
    return lost if measured else f"{what} has not been measured yet; go on with: dnas resume {quoted(run.folder)}"
