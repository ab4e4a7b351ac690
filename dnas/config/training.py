"""How weights are trained: the keys that every training section of a job file shares."""

# ruff: noqa: E501 - one key to a line, as in dnas.config.job

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dnas.config.fields import AtLeastOne, Count, Fraction, NonNegative, Positive, Ratio, Section

_OWN_KEYS = {"lr": "learning_rate", "weight_decay": "weight_decay", "momentum": "momentum", "params": "the network"}


class Optimization(Section):
    """How weights follow their gradients: optimizer, schedule, decay, clipping, accumulation, averaging."""

    optimizer: str = Field(default="SGD", description="`NAME` of torch.optim (`SGD`, `Adam`, `AdamW`, ...), `timm:NAME`, or your own `package.module:Class`.")  # fmt: skip
    optimizer_options: dict[str, Any] = Field(default={}, examples=[{"betas": [0.9, 0.98]}], description="Further arguments of the optimizer, such as `betas`, `eps` or `nesterov`.")  # fmt: skip
    learning_rate: Positive = Field(default=0.1, description="Learning rate at the start of the schedule.")
    momentum: Ratio = Field(default=0.9, description="Momentum, of optimizers that take one.")
    schedule: Literal["cosine", "step", "constant"] = Field(default="cosine", description="Learning rate over the training: half a cosine to 0, times `milestone_factor` at each milestone, or constant.")  # fmt: skip
    milestones: tuple[Fraction, ...] = Field(default=(0.5, 0.75), description="With `schedule = 'step'`: the parts of the training after which the learning rate falls.")  # fmt: skip
    milestone_factor: Fraction = Field(default=0.1, description="With `schedule = 'step'`: what the learning rate is multiplied by at each milestone.")  # fmt: skip
    learning_rate_warmup: Ratio = Field(default=0.0, description="Part of the training in which the learning rate rises linearly, from a hundredth, before the schedule starts.")  # fmt: skip
    weight_decay: NonNegative = Field(default=5e-4, description="Weight decay, as the optimizer applies it (never on clips or θ).")  # fmt: skip
    weight_decay_on: Literal["all", "weights"] = Field(default="all", description="What decays: all but clips, or only tensors of two and more dimensions (no normalisation, no bias).")  # fmt: skip
    clip_rate: NonNegative = Field(default=1.0, description="Learning rate of the quantizers' clips, as a multiple of the others'.")  # fmt: skip
    gradient_clipping: NonNegative = Field(default=0.0, description="Largest norm of the gradient of an update; longer ones are scaled down (0: never).")  # fmt: skip
    accumulation: AtLeastOne = Field(default=1, description="Batches whose gradients are averaged for one update.")
    label_smoothing: Ratio = Field(default=0.0, description="Probability that is taken from the label and shared out among all classes.")  # fmt: skip
    averaging: Ratio = Field(default=0.0, description="Decay of a moving average of the weights, such as 0.999, which is measured and kept in their place (0: none).")  # fmt: skip

    @model_validator(mode="after")
    def _options_are_further_ones(self) -> Optimization:
        for name in self.optimizer_options:
            if name in _OWN_KEYS:
                raise ValueError(f"optimizer_options has '{name}', which {_OWN_KEYS[name]} sets; leave it out there")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)} do not rise")
        return self


class TrainingSection(Optimization):
    """A training of so many epochs."""

    epochs: Count = Field(default=10, description="Passes over the training data.")


Distillation = Annotated[float, Field(ge=0, le=1)]
"""λ of a loss (1 - λ) task + λ distillation."""
