from __future__ import annotations

import tests.computing  # noqa: F401  # before anything else: it says how Triton is to be imported

# isort: split
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import typer.testing

from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.data import sources
from dnas.jobs.run import run_job
from dnas.jobs.stages import testing
from results.pareto import ParetoFront
from results.pictures.front import draw_fronts, save_figure
from results.run.environment import environment
from results.run.folder import Run
from tests.known import remembering

TOY = (
    "device=cpu",
    "threads=1",
    "model.arguments={width=4,stages=2}",
    "data.train_limit=120",
    "data.test_limit=60",
    "data.batch_size=32",
    "space.weight_bits=[2,4,8]",
    "space.activation_bits=[2,4,8]",
    "quantizer.calibration_batches=2",
    "pretrain.epochs=2",
    "search.warmup_epochs=1",
    "search.epochs=2",
    "search.budgets=[{size_bytes='20%'},{size_bytes='25%'}]",
    "finetune.epochs=1",
    "finetune.seeds=2",
    "controls.uniform=[2,4]",
    "controls.random=1",
    "controls.sensitivity_images=32",
    "choice.enabled=false",
    "prune.enabled=false",
    "finalise.enabled=false",
)
SMALLER = (
    "model.arguments={width=8,stages=1}",
    "data.train_limit=80",
    "pretrain.epochs=1",
    "search.epochs=1",
    "search.budgets=[{size_bytes='25%'}]",
    "finetune.seeds=1",
    "controls.uniform=[4]",
    "controls.random=0",
    "controls.ilp=false",
)


@pytest.fixture(scope="session", autouse=True)
def _known_networks() -> Iterator[None]:
    with remembering():
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """Each command that a test runs would build all of them anew: longer than many take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def _digits_are_read_once() -> Iterator[None]:
    """Parsing their text takes a tenth of a small job's time, and every command of a test does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load_digits", cache(sources.load_digits))
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_front_is_drawn_once() -> Iterator[None]:
    """Every job ends with a picture of its front, a fifth of a small one's time: fronts of like axes share it.

    What is drawn of which points is tested in tests/results/pictures.
    """
    drawn: dict[Any, bytes] = {}

    def save(front: ParetoFront, path: Path) -> None:
        like = (front.x, front.metric)
        if repr(like) not in drawn:
            save_figure(draw_fronts({"run": front}, x=front.x), path)
            drawn[repr(like)] = path.read_bytes()
        path.write_bytes(drawn[repr(like)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "draw_fronts", lambda fronts, x: next(iter(fronts.values())))
        patch.setattr(testing, "save_figure", save)
        yield


@pytest.fixture(scope="session")
def toy_settings() -> tuple[str, ...]:
    return TOY


@pytest.fixture(scope="session")
def smaller_settings() -> tuple[str, ...]:
    return (*TOY, *SMALLER)


@pytest.fixture(scope="session")
def toy() -> Callable[..., JobConfig]:
    """A job of about two seconds: a tiny ResNet on a few digits, two budgets, two seeds."""
    return lambda *settings: load_job("digits", [*TOY, *settings])


@pytest.fixture(scope="session")
def smaller(toy: Callable[..., JobConfig]) -> Callable[..., JobConfig]:
    """A job of less than a second: one budget, one seed, one epoch of each kind."""
    return lambda *settings: toy(*SMALLER, *settings)


@pytest.fixture(scope="session")
def carried_out() -> Callable[..., Run]:
    """Run a job to its end in a new folder."""
    surroundings = environment()

    def carry_out(config: JobConfig, folder: Path, report: Callable[[Any], None] = lambda event: None) -> Run:
        with Run.create(folder, dump_job(config), surroundings) as run:
            run_job(config, run, report)
        return run

    return carry_out


@pytest.fixture(scope="session")
def toy_events() -> list[dict[str, Any]]:
    """Every event that the toy run reported, progress included; filled by ``toy_run``."""
    return []


@pytest.fixture(scope="session")
def toy_run(
    toy: Callable[..., JobConfig],
    carried_out: Callable[..., Run],
    toy_events: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """The toy job, carried out once for all tests that only read it."""
    return carried_out(toy(), tmp_path_factory.mktemp("toy") / "run", toy_events.append)


@pytest.fixture(scope="session")
def smaller_run(
    smaller: Callable[..., JobConfig], carried_out: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The smaller job, carried out without interruption."""
    return carried_out(smaller(), tmp_path_factory.mktemp("smaller") / "run")


@pytest.fixture(scope="session")
def specified_reader() -> dict[str, Any]:
    """The functions that docs/packed-format.md shows; they import neither torch nor this package."""
    page = Path(__file__).parents[2] / "docs" / "packed-format.md"
    blocks = page.read_text(encoding="utf-8").split("```python\n")[1:]
    text = next(block.split("```")[0] for block in blocks if "def read_packed" in block)
    assert len(text.splitlines()) <= 150
    assert not {"torch", "dnas", "results", "safetensors"} & set(text.replace(".", " ").split())
    names: dict[str, Any] = {}
    exec(compile(text, str(page), "exec"), names)
    return names
