"""The search: resumable bit for bit, θ and weights trained apart, and limits that it must respect."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dnas.config.job import SearchSection
from dnas.data.augmentation import Augmentation
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice
from dnas.search.images import SearchData
from dnas.search.records import EpochRecord
from dnas.search.supernet import Supernet
from dnas.search.trainer import SupernetTrainer
from dnas.training.distillation import Teacher
from dnas.training.loss_meter import LossMeter
from search_spaces.costs.budgets import Budget
from search_spaces.errors import JobError
from tests.dnas.search.test_supernet import fixed_twin
from tests.toys import Net, build_supernet, images, inputs, seeded, trained

CPU = torch.device("cpu")
DATA = SearchData.split(images(96), images(24, seed=1), 0.25, 12, Augmentation(crop_padding=1))
OPTIONS: dict[str, Any] = {"weight_bits": (1, 4, 8), "activation_bits": (2, 8), "first_layer": "search"}


def supernet(engine: Any = "composite", **options: Any) -> Supernet:
    built = build_supernet(trained(Net()), engine=engine, **(options or OPTIONS))
    calibrate(built.network, [inputs()])
    return built


def trainer(built: Supernet | None = None, seed: int = 0, **section: Any) -> SupernetTrainer:
    values = {"warmup_epochs": 2, "epochs": 3, "theta_learning_rate": 0.1, "penalty": 4.0, **section}
    return SupernetTrainer(built or supernet(), SearchSection(**values), DATA, seed=seed, label="mine", device=CPU)


def budget(built: Supernet, name: str = "bitops", share: float = 0.3) -> Budget:
    """A limit at this share of what the widest choice costs."""
    widest = [(int(cells.nonzero()[0][-1]), int(cells.nonzero()[1][-1])) for cells in built.space.allowed]
    return Budget({name: share * built.table.cells_cost(widest)[name]}, f"{share:.0%}")


def run(of: SupernetTrainer, limits: Budget | None = None) -> Iterator[EpochRecord]:
    return of.search(limits or budget(of.supernet))


def timeless(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in records]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def weights_of(of: SupernetTrainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.supernet.network.named_parameters()}


def theta_of(of: SupernetTrainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.supernet.theta.named_parameters()}


MODES = [
    {"engine": "composite", "sampling": "gumbel", "weight_updates": "frozen"},
    {"engine": "composite", "sampling": "gumbel_hard", "weight_updates": "epoch"},
    {"engine": "branches", "sampling": "softmax", "weight_updates": "step"},
]


@pytest.mark.parametrize(
    "mode",
    [*(pytest.param(mode, marks=pytest.mark.whole) for mode in MODES[:2]), MODES[2]],
    ids=lambda mode: mode["weight_updates"],
)
def test_a_restored_search_goes_on_bit_for_bit(mode: dict[str, Any]) -> None:
    engine, section = mode["engine"], {key: value for key, value in mode.items() if key != "engine"}
    whole, stopped, resumed = (trainer(supernet(engine), epochs=2, **section) for _ in range(3))
    records = list(run(whole))
    first = next(run(stopped))
    tensors, values = copy.deepcopy(stopped.state())
    torch.manual_seed(5)  # what else happens in a process must not matter
    with torch.no_grad():
        for parameter in resumed.supernet.parameters():
            parameter.add_(1.0)
    resumed.restore(tensors, values)
    assert timeless([first, *run(resumed)]) == timeless(records)
    assert same(resumed.supernet.state_dict(), whole.supernet.state_dict())


@pytest.mark.parametrize(
    ("warmup", "engine"), [pytest.param("mixture", "branches", marks=pytest.mark.whole), ("sandwich", "composite")]
)
def test_a_restored_warmup_goes_on_bit_for_bit(warmup: str, engine: Any) -> None:
    whole, stopped, resumed = (trainer(supernet(engine), warmup=warmup) for _ in range(3))
    records = list(whole.warmup())
    first = next(stopped.warmup())
    resumed.restore(*stopped.state())
    assert timeless([first, *resumed.warmup()]) == timeless(records)
    assert same(resumed.supernet.state_dict(), whole.supernet.state_dict())


def test_a_step_of_the_sandwich_adds_up_the_gradients_of_its_assignments() -> None:
    """The oracle: each assignment run by itself, taught by the float network as the labels say."""
    teacher = trained(Net(), seed=3).eval()
    made = SupernetTrainer(
        supernet(), SearchSection(warmup="sandwich", sandwich_samples=2, label_smoothing=0.1), DATA,
        label="mine", teacher=Teacher(teacher, 0.3), budgets=[budget(supernet())],
    )  # fmt: skip
    generator = seeded(4)
    expected = made.sandwich.draw(generator.clone_state())
    samples = made._warmup_samples(generator)
    assert [sample.cells.nonzero()[:, 1:].tolist() for sample in samples] == [
        [[*c] for c in cells] for cells in expected
    ]
    built, (x, y) = made.supernet, next(DATA.weights.batches(12))
    losses = []
    for cells in expected:
        with built.sampled(built.one_hot(cells)):
            outputs = built.train()(x)
            soft = F.kl_div(outputs.log_softmax(1), teacher(x).log_softmax(1), reduction="batchmean", log_target=True)
            losses.append(0.7 * F.cross_entropy(outputs, y, label_smoothing=0.1) + 0.3 * soft)
    wanted = torch.autograd.grad(torch.stack(losses).mean(), built.weights)
    meter = LossMeter(made.device, 1)
    built.zero_grad()
    made.weights._update = lambda: None  # type: ignore[method-assign]
    made._weight_step((x, y), samples, (0, 1, 0.0), meter)
    assert meter.sum() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    for parameter, gradient in zip(built.weights, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_one_hot_is_still_the_fixed_net_after_a_sandwich() -> None:
    made = trainer(warmup="sandwich", warmup_epochs=1)
    list(made.warmup())
    made.supernet.eval()
    for cells in ([(0, 0), (1, 1), (2, 0)], [(2, 1), (0, 1), (1, 0)]):
        fixed = fixed_twin(made.supernet, cells, QuantizerChoice())
        trained_state = made.supernet.network.state_dict()
        fixed.load_state_dict({k: v for k, v in trained_state.items() if "quantize" not in k}, strict=False)
        with made.supernet.sampled(made.supernet.one_hot(cells)):
            assert torch.equal(made.supernet(inputs()), fixed(inputs()))


def test_one_warmed_up_state_serves_several_budgets() -> None:
    warm = trainer()
    list(warm.warmup())
    tensors, _ = warm.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    ends = []
    for share in (0.3, 0.1, 0.3):
        fresh = trainer(supernet())
        fresh.supernet.load_state_dict({name[9:]: t for name, t in tensors.items() if name.startswith("supernet.")})
        list(run(fresh, budget(fresh.supernet, share=share)))
        ends.append(theta_of(fresh))
        assert same(tensors, kept)
    assert same(ends[0], ends[2])
    assert not same(ends[0], ends[1])


def test_the_same_seed_gives_the_same_records_and_another_others() -> None:
    first, again, other = (timeless(list(run(trainer(seed=seed)))) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_warmup_trains_weights_and_leaves_theta_as_it_is() -> None:
    warm = trainer()
    weights, theta = weights_of(warm), theta_of(warm)
    records = list(warm.warmup())
    assert same(theta_of(warm), theta)
    assert all(not torch.equal(value, weights[name]) for name, value in weights_of(warm).items() if "weight" in name)
    assert [record.temperature for record in records] == [None, None]
    assert records[-1].loss < records[0].loss


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_step_of_theta_leaves_the_weights_and_one_of_the_weights_leaves_theta(engine: Any) -> None:
    frozen = trainer(supernet(engine), weight_updates="frozen")
    weights, theta = weights_of(frozen), theta_of(frozen)
    list(run(frozen))
    assert same(weights_of(frozen), weights)
    assert not same(theta_of(frozen), theta)
    assert all(p.requires_grad and p.grad is None for p in frozen.supernet.network.parameters())


def test_weights_and_theta_alternate_as_the_job_says() -> None:
    steps: dict[str, list[str]] = {}
    for updates in ("frozen", "epoch", "step"):
        alternating = trainer(weight_updates=updates, epochs=1)
        seen: list[str] = []
        for kind in ("weights", "theta"):
            optimizer = getattr(alternating, kind).optimizer
            optimizer.register_step_post_hook(lambda *_, kind=kind, seen=seen: seen.append(kind))
        list(run(alternating))
        steps[updates] = seen
        assert len(seen) == alternating.steps
    assert steps == {
        "frozen": ["theta"] * 2,
        "epoch": ["weights"] * 6 + ["theta"] * 2,
        "step": ["weights", "theta"] * 6,
    }


def test_theta_and_weights_see_disjoint_images_of_every_class() -> None:
    train = images(90)
    train.images += torch.arange(90.0).view(-1, 1, 1, 1) / 1000  # each is one of its kind
    data = SearchData.split(train, images(30), 0.2, 10, None)
    assert (len(data.theta), len(data.weights)) == (18, 72)
    assert data.theta.labels.bincount().tolist() == [6, 6, 6]
    both = torch.cat([data.theta.images, data.weights.images]).flatten(1).unique(dim=0)
    assert len(both) == 90


def test_the_temperature_falls_as_published() -> None:
    """T = 5 exp(-η epoch), epochs counted from 0: 5 exp(-η epochs) is reached where the last one ends."""
    rate, epochs = 0.4, 4
    end = 5 * math.exp(-rate * epochs)
    records = list(run(trainer(epochs=epochs, temperature_start=5.0, temperature_end=end)))
    assert [record.temperature for record in records] == pytest.approx([5 * math.exp(-rate * e) for e in range(epochs)])


def test_an_overwhelming_penalty_gives_the_cheapest_and_none_ignores_the_budget() -> None:
    pushed = trainer(epochs=8, penalty=1e4, theta_learning_rate=0.5)
    list(run(pushed, budget(pushed.supernet, share=1e-3)))
    assert pushed.supernet.decode() == [(0, 0)] * 3
    thetas = []
    for share in (1e-3, 0.9):
        free = trainer(penalty=0.0)
        list(run(free, budget(free.supernet, share=share)))
        thetas.append(theta_of(free))
    assert same(*thetas)


@pytest.mark.parametrize(
    ("sampling", "share"),
    [
        pytest.param("gumbel", 0.25, marks=pytest.mark.whole),
        ("gumbel_hard", 0.6),
        pytest.param("softmax", 0.25, marks=pytest.mark.whole),
    ],
)
def test_a_search_with_a_two_sided_pull_ends_on_its_budget(sampling: Any, share: float) -> None:
    searching = trainer(epochs=20, loss="two_sided", penalty=10.0, sampling=sampling, theta_learning_rate=0.1)
    limits = budget(searching.supernet, share=share)
    *_, last = run(searching, limits)
    assert last.expected["bitops"] == pytest.approx(limits.limits["bitops"], rel=0.05)


def test_a_record_says_what_the_epoch_was() -> None:
    searching = trainer()
    record = list(run(searching))[-1]
    built = searching.supernet
    probabilities = built.theta.probabilities()
    assert record.expected == {n: built.expected_cost(n, probabilities).item() for n in built.table.costs}
    assert record.bits == {
        d.name: built.space.pair(*cell) for d, cell in zip(built.space.decisions, built.decode(), strict=True)
    }
    assert record.entropy == pytest.approx(built.theta.entropies().mean().item())
    assert list(record.decision_entropy) == ["stem", "first", "second"]
    told = {name: list(row.values()) for name, row in record.weight_probabilities.items()}
    assert list(told.values()) == [pytest.approx(row, abs=1e-4) for row in probabilities.weights.tolist()]
    assert list(record.weight_probabilities["stem"]) == list(built.space.weight_bits)
    sums = [sum(row.values()) for row in record.activation_probabilities.values()]
    assert sums == pytest.approx([1.0] * 3, abs=1e-3)
    assert 0 <= record.score <= 1
    assert (record.epoch, record.epochs) == (3, 3)
    assert record.to_json()["bits"] == record.bits


def test_judging_leaves_the_running_statistics_as_they_are() -> None:
    searching = trainer()
    before = {name: value.clone() for name, value in searching.supernet.state_dict().items()}
    searching._judge(searching.supernet.theta.probabilities())
    assert same(searching.supernet.state_dict(), before)


@pytest.mark.parametrize("stage", ["warmup", "search"])
@pytest.mark.parametrize("broken", ["stem", "second", "head"])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_first_layer(stage: str, broken: str) -> None:
    failing = trainer()
    layer: Any = failing.supernet.network.get_submodule(broken)
    with torch.no_grad():
        layer.weight.view(-1)[0] = math.nan
    before = {**weights_of(failing), **theta_of(failing)}
    with pytest.raises(JobError, match=rf"loss became nan: layer '{broken}' is the first whose output is not finite"):
        next(failing.warmup() if stage == "warmup" else run(failing))
    after = {**weights_of(failing), **theta_of(failing)}
    assert all(torch.equal(after[name].nan_to_num(7), before[name].nan_to_num(7)) for name in before)


def test_skipping_can_be_searched_with_every_loss_and_both_engines() -> None:
    skipping: dict[str, Any] = {"granularity": "block", "weight_bits": (0, 2, 8), "activation_bits": (4, 32)}
    for engine in ("composite", "branches"):
        for loss in ("two_sided", "hinge", "log_product", "additive"):
            built = supernet(engine, include=("first", "second"), **skipping)
            for sampling in ("gumbel", "gumbel_hard"):
                (record,) = run(trainer(built, epochs=1, loss=loss, sampling=sampling))
                assert math.isfinite(record.loss)
                assert all(p.isfinite().all() for p in built.parameters())


class Checkpointed(Net):
    """Its residual branch runs again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        y = checkpoint(lambda x: self.relu(self.first_norm(self.first(x))), x, use_reentrant=False)
        y = checkpoint(lambda y: self.second_norm(self.second(y)), y, use_reentrant=False)
        return self.head(F.adaptive_avg_pool2d(self.relu(y + x), 1).flatten(1))


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_network_that_runs_again_in_backward_is_searched_alike(engine: Any) -> None:
    outcomes = []
    for model in (trained(Net()), trained(Checkpointed())):
        built = build_supernet(model, engine=engine, **OPTIONS)
        calibrate(built.network, [inputs()])
        searching = trainer(built, warmup_epochs=1, epochs=1)
        records = [*searching.warmup(), *run(searching)]
        outcomes.append((timeless(records), {name: p.detach().clone() for name, p in built.named_parameters()}))
    assert outcomes[0][1].keys() == outcomes[1][1].keys()
    for name, parameter in outcomes[0][1].items():
        torch.testing.assert_close(outcomes[1][1][name], parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("updates", [pytest.param("epoch", marks=pytest.mark.whole), "step"])
def test_a_search_with_every_kind_of_update_goes_on_bit_for_bit(updates: Any) -> None:
    keys: dict[str, Any] = {
        "weight_updates": updates, "optimizer": "AdamW", "learning_rate": 0.01, "accumulation": 4, "averaging": 0.8,
        "gradient_clipping": 1.0, "label_smoothing": 0.1,
    }  # fmt: skip
    teacher = Teacher(trained(Net()), 0.5)

    def make() -> SupernetTrainer:
        values = SearchSection(warmup_epochs=2, epochs=3, **keys)
        return SupernetTrainer(supernet(), values, DATA, label="mine", device=CPU, teacher=teacher)

    whole, stopped, resumed = make(), make(), make()
    records = list(run(whole))
    first = next(run(stopped))
    resumed.restore(*copy.deepcopy(stopped.state()))
    assert timeless([first, *run(resumed)]) == timeless(records)
    assert same(resumed.supernet.state_dict(), whole.supernet.state_dict())


def test_the_warmup_leaves_the_average_of_the_weights() -> None:
    warm = trainer(averaging=0.8)
    *_, last = warm.warmup()
    assert warm.weights.average is not None
    assert all(map(torch.equal, warm.weights.average.mean, warm.weights.average.live))
    assert last.score == timeless([warm._record(2, [], None, 0.0)])[0].score
