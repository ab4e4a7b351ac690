"""How a job trains: what is refused beforehand, and the float network as a teacher."""

from __future__ import annotations

from torch import nn

from dnas.config.job import JobConfig
from dnas.training.distillation import Teacher, finetune_weight
from dnas.training.optimizers import check_optimizer
from dnas.training.task import CLASSIFICATION, Task, smoothed
from search_spaces.errors import InputError


def check_training(config: JobConfig, task: Task = CLASSIFICATION) -> None:
    """Raise :class:`InputError` for an optimizer that cannot train, a teacher that knows nothing, no labels."""
    sections = {
        "pretrain": config.pretrain if config.pretrain.epochs else None,
        "search": config.search if "search" in config.order else None,
        "finetune": config.finetune,
        "finalise": config.finalise if config.finalise.enabled or config.compression == "switchable" else None,
    }
    for name, section in sections.items():
        if section is not None:
            check_optimizer(section, f"[{name}]")
            smoothed(task, section.label_smoothing)
    taught = {
        "search.distillation": sections["search"] is not None and config.search.distillation > 0,
        "finetune.distillation": bool(config.finetune.distillation),
        "finalise.teacher = 'float'": sections["finalise"] is not None and config.finalise.teacher == "float",
    }
    for key, wanted in taught.items():
        if wanted and _is_untrained(config):
            raise InputError(
                f"{key} needs a trained float network to learn from; set pretrain.epochs or model.checkpoint"
            )


def finetune_teacher(network: nn.Module, config: JobConfig, task: Task) -> Teacher | None:
    """The float network as the teacher of every net that is fine-tuned; nobody where it knows nothing itself."""
    section = config.finetune
    if section.distillation is None and _is_untrained(config):
        return None
    return teacher_of(network, finetune_weight(section, task))


def _is_untrained(config: JobConfig) -> bool:
    """Whether the float network is known to be as it was initialized; one of the user's own may have its weights."""
    prefix, arguments = config.model.source.partition(":")[0], config.model.arguments
    comes_untrained = prefix in ("zoo", "torchvision", "timm") and not (
        arguments.get("weights") or arguments.get("pretrained")
    )
    return comes_untrained and not config.pretrain.epochs and config.model.checkpoint is None


def teacher_of(network: nn.Module, weight: float) -> Teacher | None:
    """The float network as a teacher of this weight; nobody at 0."""
    return Teacher(network, weight) if weight else None
