"""Recorded passes give the bits of passes run step by step; what would not repeat itself is not recorded."""

from __future__ import annotations

import random
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dnas.config.training import TrainingSection
from dnas.quantization import mixture
from dnas.switchable.training import SwitchableTrainer
from dnas.training import passes
from dnas.training.device import CPU, Device
from dnas.training.distillation import Teacher
from dnas.training.passes import Passes
from dnas.training.trainer import Trainer
from tests.dnas.search.test_trainer import budget, supernet
from tests.dnas.search.test_trainer import trainer as search_trainer
from tests.dnas.switchable.test_training import images as switchable_images
from tests.dnas.switchable.test_training import net_of, section
from tests.tape import TapeRecorder
from tests.toys import Net, images, trained


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """Lets every trainer record, as on a device whose values the host does not look at."""
    made = TapeRecorder()
    monkeypatch.setattr(mixture, "_taking_part", lambda *values: values)
    monkeypatch.setattr(passes, "CudaRecorder", lambda place: made)
    monkeypatch.setattr(Device, "records", property(lambda self: True))
    return made


def trainer(network: nn.Module | None = None, **options: Any) -> Trainer:
    torch.manual_seed(3)
    keys = {key: options.pop(key) for key in list(options) if key in TrainingSection.model_fields}
    network = network or Net().train()
    return Trainer(network, TrainingSection(epochs=2, **keys), images=images(60), batch_size=12, **options)


def switchable(**keys: Any) -> SwitchableTrainer:
    return SwitchableTrainer(net_of(), section(**keys), images=switchable_images(), batch_size=4)


def searched(engine: str, **keys: Any) -> Any:
    made = search_trainer(supernet(engine=engine), warmup_epochs=1, epochs=2, **keys)
    list(made.warmup())
    list(made.search(budget(made.supernet)))
    return made


def run(made: Any) -> Any:
    list(made.epochs())
    return made


def tutor() -> Teacher:
    torch.manual_seed(9)
    return Teacher(Net(), 0.4)


def sandwiched() -> Any:
    """Each step's passes share what the teacher says."""
    made = search_trainer(supernet(), warmup="sandwich")
    made.teacher = tutor()
    list(made.warmup())
    return made


KINDS: dict[str, tuple[Callable[[], Any], int]] = {
    "fixed": (lambda: run(trainer()), 1),
    "accumulated, clipped, averaged": (
        lambda: run(trainer(accumulation=2, gradient_clipping=0.1, averaging=0.9, optimizer="AdamW")), 2),
    "taught": (lambda: run(trainer(teacher=tutor())), 1),
    "search": (lambda: searched("composite"), 2),
    "a sandwich with a teacher": (sandwiched, 2),
    "search of branches, weights between": (lambda: searched("branches", weight_updates="step"), 2),
    "all profiles": (lambda: run(switchable(method="sp_nets")), 5),
    "drawn profiles, each taught by the next": (lambda: run(switchable(teacher="next")), 4),
    "the ensemble": (lambda: run(switchable(method="sp_nets", teacher="ensemble")), 1),
}  # fmt: skip
FEW = ("fixed", "accumulated, clipped, averaged", "search", "drawn profiles, each taught by the next")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in FEW else pytest.mark.whole) for kind in KINDS])
def test_a_recorded_training_ends_bit_for_bit_like_one_step_by_step(
    kind: str, recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, recordings = KINDS[kind]
    recorded = make().state()[0]
    assert recorder.recordings == recordings
    assert recorder.replays > 0
    monkeypatch.setattr(Device, "records", property(lambda self: False))
    plain = make().state()[0]
    assert recorded.keys() == plain.keys()
    for name, tensor in plain.items():
        assert torch.equal(recorded[name], tensor), name


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + self.calls)


class Drawing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random()


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand(1)  # of the host, whatever the device


class DrawingByNumPy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(np.random.rand())


class DrawingItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.others = np.random.default_rng(1), [random.Random(1)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.numbers.random()


class CountingInside(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen = {"passes": [0]}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["passes"][0] += 1
        return super().forward(x) * self.seen["passes"][0]


class CountingOnTheHost(Net):
    def __init__(self) -> None:
        super().__init__()
        self.passes = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x) * self.passes


class Rebinding(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.5 * getattr(self, "mean", torch.zeros(())) + x.mean()
        return super().forward(x) + self.mean.detach()


class Reading(Net):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if out.mean().item() > 0 else -out


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Counting, "it changes '.calls'"),
        (Drawing, "it changes Python's random numbers"),
        (Dropping, "it changes random numbers of the CPU"),
        (DrawingByNumPy, "it changes NumPy's random numbers"),
        (DrawingItself, "it changes '.numbers'"),
        (CountingInside, "it changes '.seen'"),
        (CountingOnTheHost, "it changes '.passes'"),
        (Rebinding, "it changes '.mean'"),
        (Reading, "not permitted when stream is capturing"),
    ],
)
def test_what_a_recording_would_freeze_runs_step_by_step_and_is_told(
    model: type[Net], reason: str, recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended() -> dict[str, Tensor]:
        random.seed(1)
        np.random.seed(1)
        np.random.rand()
        torch.manual_seed(1)
        return run(trainer(model().train())).state()[0]

    with pytest.warns(UserWarning, match="cannot be recorded") as caught:
        given = ended()
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert recorder.replays == 0
    monkeypatch.setattr(Device, "records", property(lambda self: False))
    for name, tensor in ended().items():
        assert torch.equal(given[name], tensor), name


def test_steps_that_the_host_steers_are_not_recorded(recorder: TapeRecorder) -> None:
    run(trainer(on_progress=lambda progress: None))
    assert recorder.recordings == 0


def test_passes_of_other_shapes_and_parts_have_recordings_of_their_own(recorder: TapeRecorder) -> None:
    network = trained(Net())
    made = Passes(network, CPU)

    def loss(x: Tensor) -> tuple[Tensor]:
        return (network(x).square().mean(),)

    for size, part in [(2, 1.0), (3, 1.0), (3, 0.5)] * 4:
        x = images(size).images
        network.zero_grad(set_to_none=True)
        made.train("x", loss, (x,), part)
        found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        network.zero_grad(set_to_none=True)
        (part * loss(x)[0]).backward()
        assert found
        for own, parameter in zip(found, (p for p in network.parameters() if p.grad is not None), strict=True):
            torch.testing.assert_close(own, parameter.grad)
    assert recorder.recordings == 3


def test_frozen_parameters_get_no_gradient_any_more(recorder: TapeRecorder) -> None:
    network = trained(Net())
    made = Passes(network, CPU)
    for frozen in (False, True, False):
        network.second.requires_grad_(not frozen)
        for _ in range(4):
            network.zero_grad(set_to_none=True)
            made.train("x", lambda x: (network(x).square().mean(),), (images(4).images,))
            assert (network.second.weight.grad is None) == frozen
    assert recorder.recordings == 2


@pytest.mark.parametrize("odd", [0.0, torch.zeros(2, device="meta")])
def test_inputs_of_another_device_and_numbers_are_odd_too(odd: Any, recorder: TapeRecorder) -> None:
    """Neither is asked for its truth."""
    network = trained(Net())
    made, x = Passes(network, CPU), images(4).images
    with pytest.warns(UserWarning, match=f"a {type(odd).__name__} among its inputs"):
        made.train("x", lambda x, other: (network(x).square().mean(),), (x, odd))
    assert recorder.recordings == 0


@pytest.mark.parametrize("hooked", [True, False])
def test_what_cannot_be_given_anew_or_would_be_skipped_is_not_recorded(hooked: bool, recorder: TapeRecorder) -> None:
    network, seen = trained(Net()), []
    if hooked:
        network.second.weight.register_post_accumulate_grad_hook(seen.append)
    made = Passes(network, CPU)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(4):
            given = images(4).images if hooked else Odd(images(4, seed=number).images)
            made.train("x", lambda x: (network(getattr(x, "x", x)).square().mean(),), (given,))
    assert [("hooks wait" if hooked else "an Odd among its inputs") in str(each.message) for each in told] == [True]
    assert recorder.recordings == 0
    assert len(seen) == (4 if hooked else 0)


class Odd:
    """Targets of one's own that are no structure of tensors."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_a_parameter_that_a_pass_does_not_reach_has_no_gradient(recorder: TapeRecorder) -> None:
    """An optimizer leaves it alone then; one of zeros would decay it."""
    network = nn.ModuleDict({"used": nn.Linear(2, 1), "other": nn.Linear(2, 1)})
    made, x = Passes(network, CPU), torch.ones(4, 2)
    for kind in ["used"] * 4 + ["other"] * 4 + ["used"]:
        network.zero_grad(set_to_none=True)
        made.train(kind, lambda x, kind=kind: (network[kind](x).square().mean(),), (x,))
        reached = {name for name, p in network.named_parameters() if p.grad is not None}
        assert reached == {f"{kind}.weight", f"{kind}.bias"}


def test_no_more_warnings_than_the_pass_itself_gives(recorder: TapeRecorder) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(trainer())
    assert [str(each.message) for each in told] == []
    assert recorder.recordings == 1


def test_recordings_are_let_go_where_memory_ends_and_the_first_error_is_told(
    recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an update, whose gradients stay; what ends a recording raises an error of its own."""

    def recorded(place: torch.device) -> Any:
        return lambda run: recorder(run) if not recorder.recordings else fail()

    def fail() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(passes, "CudaRecorder", recorded)
    network, alone = trained(Net()), trained(Net())
    made = Passes(network, CPU)
    held: list[weakref.ref[Any]] = []

    def train(size: int) -> None:
        x = images(size, seed=len(held)).images
        made.train("x", lambda x: (network(x).square().mean(),), (x,))
        alone(x).square().mean().backward()
        held.extend(weakref.ref(recording) for recording in made._recordings.values())

    for size in (2, 2, 2, 3):
        train(size)
    assert len(held) == 2
    with pytest.warns(UserWarning, match=r"cannot be recorded as a CUDA graph \(CUDA out of memory\)"):
        train(3)
    train(2)
    assert len(held) == 2
    assert all(recording() is None for recording in held)
    for own, other in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
