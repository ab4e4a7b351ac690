"""The trained nets that a run keeps: one for each measured assignment, one for each switchable net, by seed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.switchable.net import SwitchableNet
from results.run.folder import Run
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.provenance import Profile


def stored_net(
    run: Run, network: nn.Module, graph: LayerGraph, assignment: BitAssignment, choice: QuantizerChoice, seed: int
) -> nn.Module:
    """The measured net of an assignment and seed of a run, in eval mode, built from the job's float ``network``."""
    origin = assignment.provenance
    if isinstance(origin, Profile):
        return stored_switchable(run, network, graph, origin.net, seed).alone(origin.profile)
    saved = run.load_checkpoint(f"net-{assignment.metrics.get('same_as', assignment.id)}-seed{seed}")
    if saved is None:
        raise InputError(
            f"assignment '{assignment.id}' has not been measured yet; run `dnas resume {run.folder}` first"
        )
    fixed = quantize_fixed(network, graph, assignment.layers, choice)
    fixed.load_state_dict(saved[0])
    return fixed.eval()


def save_switchable(run: Run, net: SwitchableNet, name: str, seed: int) -> None:
    """Keep a switchable net under its name and seed."""
    values: dict[str, Any] = {
        "seed": seed,
        "profiles": {key: profile.assignment.id for key, profile in net.profiles.items()},
        "quantizer": asdict(net.choice),
        "private_norms": net.private_norms,
    }
    run.save_checkpoint(f"net-{name}-seed{seed}", net.tensors(), values)


def stored_switchable(run: Run, network: nn.Module, graph: LayerGraph, name: str, seed: int = 0) -> SwitchableNet:
    """A trained switchable net of a run, in eval mode, its profiles as they were measured.

    ``network`` is the job's float network and ``graph`` its layers. Raises :class:`InputError` where there is none.
    """
    saved = run.load_checkpoint(f"net-{name}-seed{seed}")
    if saved is None:
        raise InputError(f"{run.folder} has no trained net '{name}' yet; run `dnas resume {run.folder}` first")
    tensors, values = saved
    found = run.assignments()
    profiles = {key: found[identity] for key, identity in values["profiles"].items()}
    choice = QuantizerChoice(**values["quantizer"])
    net = SwitchableNet(network, graph, profiles, choice, private_norms=values["private_norms"])
    net.load_tensors(tensors)
    return net.eval()
