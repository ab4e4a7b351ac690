"""A whole job: pretrain, warm up, search for every budget, measure, test; each step journaled and resumable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from dnas.calibration import calibrate
from dnas.config import JobConfig
from dnas.context import JobContext, Stage
from dnas.controls import control_assignments
from dnas.diagnosis import diagnose
from dnas.jobfile import load_job
from dnas.measuring import Measurer
from dnas.mixture import compiled_mixture
from dnas.progress import Report
from dnas.schedules import derived_seed
from dnas.search import EpochRecord, SupernetTrainer
from dnas.supernet import Supernet
from dnas.training import Trainer, evaluate
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.plots import draw_fronts, save_figure
from results.runs import Run
from search_spaces.assignments import BitAssignment
from search_spaces.budgets import Budget
from search_spaces.errors import InputError, JobError

Result = TypeVar("Result")


def run_job(config: JobConfig, run: Run, report: Report) -> ParetoFront:
    """Run a job, or go on with it if the run's journal is not empty; returns the measured front.

    ``report`` receives every journal event, and ``progress`` events in between. Raises :class:`InputError` before
    any training for what cannot work, :class:`JobError` for what went wrong on the way; both leave the run resumable.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    context = JobContext(config, run, report)
    try:
        with compiled_mixture(context.compiles):
            return _run(context)
    except BrokenPipeError:
        raise  # nobody listens any more: an interruption, not a failure
    except Exception as error:
        with contextlib.suppress(JobError):  # the journal's own disk may be what failed
            context.journal({"event": "failed", "message": _sentence(error)})
        raise


def _sentence(error: Exception) -> str:
    """The error's own sentence where it was made for the user, else with its type before it."""
    return str(error) if isinstance(error, (InputError, JobError)) else f"{type(error).__name__}: {error}"


def evaluate_assignment(run: Run, assignment_id: str, split: str, report: Report) -> dict[str, Any]:
    """Measure a finished assignment of a run again, over its seeds, on ``val`` or ``test``."""
    assignment = run.assignment(assignment_id)
    context = JobContext(load_job(str(run.folder / "job.toml")), run, report)
    images = {"val": context.data.val, "test": context.data.test}.get(split)
    if images is None:
        raise InputError(f"split '{split}' is not one of val, test")
    measurer = Measurer(context)
    values = [measurer.measure_again(assignment, seed, images).top1 for seed in range(context.config.finetune.seeds)]
    estimate = Estimate.from_values(values)
    top1 = {"mean": estimate.mean, "std": estimate.std, "n": estimate.n}
    return {"assignment": assignment.id, "split": split, "top1": top1, "images": len(images)}


def _run(context: JobContext) -> ParetoFront:
    """Every stage in turn."""
    context.journal({"event": "resumed" if context.records else "started"})
    context.tell_once(_introduction(context))
    measurer = Measurer(context)
    _stage(context, "pretrain", lambda: _pretrain(context))
    candidates = _stage(context, "search", lambda: _search(context))
    candidates += _stage(context, "controls", lambda: control_assignments(context))
    points = _stage(context, "measure", lambda: measurer.measure_all(candidates))
    front = _stage(context, "test", lambda: _front(context, measurer, points))
    context.run.save_front(front)
    save_figure(draw_fronts({context.run.name: front}, x=front.x), context.run.picture_path)
    context.journal({"event": "finished"})
    return front


def _stage(context: JobContext, name: str, work: Callable[[], Result]) -> Result:
    context.journal({"event": "stage", "stage": name, "state": "start"})
    result = work()
    context.journal({"event": "stage", "stage": name, "state": "done"})
    return result


def _introduction(context: JobContext) -> list[str]:
    """What the user should know before the first epoch."""
    missing, unexpected = context.loaded.missing_keys, context.loaded.unexpected_keys
    told = []
    if missing or unexpected:
        told.append(
            f"checkpoint: {len(missing)} keys missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    graph, data = context.plan.graph, context.data
    told += [f"left alone: {name}: {why}" for name, why in graph.left_alone.items()]
    told.append(
        f"{len(context.plan.space.decisions)} decisions over {len(graph.layers)} layers; "
        f"{len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images; "
        f"{context.config.search.engine} engine, {'compiled' if context.compiles else 'eager'} mixture, "
        f"on {context.device}"
    )
    return told


def _pretrain(context: JobContext) -> None:
    """Train the float network, where the job asks for it, without the images of θ: they must be new to the weights."""
    config = context.config
    if not config.pretrain.epochs:
        return
    trainer = Trainer(
        context.network,
        config.pretrain,
        images=context.search_data.weights,
        batch_size=config.data.batch_size,
        augmentation=context.search_data.augmentation,
        seed=config.seed,
        label="pretrain",
        device=context.device,
    )
    context.train(trainer, Stage("pretrain", "float", "pretrain", context.work.pretrain))


def _search(context: JobContext) -> list[BitAssignment]:
    """Search for every budget from one warmed-up supernet; what is decoded already is not searched again."""
    budgets: tuple[Budget | None, ...] = context.plan.budgets or (None,)
    searched = {record["run"] for record in context.events("searched")}
    missing = {f"search-{number}": b for number, b in enumerate(budgets, start=1) if f"search-{number}" not in searched}
    context.progress.advance(context.work.search * context.config.search.epochs * len(searched))
    if missing:
        supernet = _warm_supernet(context)
        warm = {name: value.clone() for name, value in supernet.state_dict().items()}
        for label, budget in missing.items():
            supernet.load_state_dict(warm)
            _search_one(context, supernet, label, budget)
    else:
        context.progress.advance(context.work.warmup * context.config.search.warmup_epochs)
    kinds = ("search", "sampled")
    return [found for found in context.assignments_of("decoded") if found.provenance["kind"] in kinds]


def _warm_supernet(context: JobContext) -> Supernet:
    """The supernet after its warm-up with θ frozen."""
    plan, section = context.plan, context.config.search
    supernet = Supernet(context.network, plan.graph, plan.space, plan.table, context.choice, section.engine)
    supernet = supernet.to(context.device)
    calibrate(supernet.network, context.calibration_images())
    stage = Stage("warmup", "warmup", "warmup", context.work.warmup)
    trainer = _supernet_trainer(context, supernet, "warmup")
    steps = context.steps(stage, trainer, section.warmup_epochs)
    for _ in context.resumed(stage, trainer, lambda: trainer.warmup(steps)):
        pass
    return supernet


def _supernet_trainer(context: JobContext, supernet: Supernet, label: str) -> SupernetTrainer:
    config = context.config
    return SupernetTrainer(
        supernet, config.search, context.search_data, seed=config.seed, label=label, device=context.device
    )


def _search_one(context: JobContext, supernet: Supernet, label: str, budget: Budget | None) -> None:
    """Train θ for one budget, decode, and journal what was found."""
    stage = Stage("search", label, label, context.work.search, budget=budget.limits if budget else {})
    trainer = _supernet_trainer(context, supernet, label)
    steps = context.steps(stage, trainer, context.config.search.epochs)
    last: dict[str, Any] = {}
    for last in context.resumed(stage, trainer, lambda: trainer.search(budget, steps)):
        _sample_architectures(context, supernet, label, last["epoch"])
    cells = supernet.decode(budget)
    context.keep_cells(label, "search", cells, label, budget)
    if last:
        record = EpochRecord(**{field.name: last[field.name] for field in fields(EpochRecord)})
        context.tell_once(diagnose(label, record, supernet.decode(), context.plan.table, budget))
    context.journal({"event": "searched", "run": label})
    context.run.delete_checkpoint(label)


def _sample_architectures(context: JobContext, supernet: Supernet, label: str, epoch: int) -> None:
    """Draw architectures from P(θ), as DNAS does every few epochs (arXiv 1812.00090, section 4.2)."""
    section = context.config.search
    if not section.sample_every or epoch % section.sample_every:
        return
    generator = torch.Generator().manual_seed(derived_seed(context.config.seed, label, "draw", epoch))
    for number in range(1, section.samples + 1):
        name = f"{label.replace('search', 'sampled')}-epoch{epoch}-{number}"
        context.keep_cells(name, "sampled", supernet.draw(generator), label)


def _front(context: JobContext, measurer: Measurer, points: list[FrontPoint]) -> ParetoFront:
    """Read the test split, once, for every measured net, and build the front."""
    tested = []
    for point in points:
        values = measurer.test(context.run.assignment(point.assignment))
        tested.append(replace(point, test_top1=Estimate.from_values(values)))
    reference = _float_reference(context)
    x = next(iter(context.plan.budgets[0].limits)) if context.plan.budgets else "size_bytes"
    return ParetoFront.from_points(tested, x=x, reference=reference)


def _float_reference(context: JobContext) -> FloatReference:
    """The float network's size and accuracies; journaled, so that the test split is read once."""
    known = context.events("float")
    if known:
        val, test = known[0]["val_top1"], known[0]["test_top1"]
    else:
        context.network.eval()
        batch_size = context.config.data.batch_size
        val = evaluate(context.network, context.data.val, batch_size, context.device).top1
        test = evaluate(context.network, context.data.test, batch_size, context.device).top1
        context.journal({"event": "float", "val_top1": val, "test_top1": test})
    return FloatReference(context.plan.table.uniform(32, ["size_bytes"])["size_bytes"], val, test)
