"""The section `[squantizer]` of a job file."""

# ruff: noqa: E501 - one key to a line, so that the file reads as the table it is

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dnas.config.fields import CompressionSection, Count, WrittenBudget
from search_spaces.fields import OnceEach, SomeBits

Sigma = Annotated[float, Field(ge=-10, le=100)]


class SquantizerSection(CompressionSection):
    """SQuantizer, for `compression = 'squantizer'`: weights that are sparse and low-bit at once. First and last layer stay in fp32; `include`, `exclude` and `fix` of `[space]` hold, `[search]` does not."""

    weight_bits: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], OnceEach] = Field(default=(4,), min_length=1, description="Bits of a weight that is not zero, 1 to 8; one net for each.")  # fmt: skip
    activation_bits: SomeBits = Field(default=4, description="Bits of input activations (`quantizer.activations`), from the first training step on.")  # fmt: skip
    sigma: Annotated[tuple[Sigma, ...], OnceEach] = Field(default=(0.0,), description="σ of the threshold, mean magnitude + σ × standard deviation of the magnitudes; one net for each, besides those of `budgets`.")  # fmt: skip
    sigmas: dict[str, Sigma] = Field(default={}, description="σ of single layers, whatever the others get: pattern = σ; the last pattern that fits counts.")  # fmt: skip
    budgets: Annotated[tuple[WrittenBudget, ...], OnceEach] = Field(default=(), description="Limits on size_bytes or weight_bits, written as in `search.budgets`; σ is chosen for each. Another cost beside them, such as latency_ms, is what the widths make of it, and is checked first.")  # fmt: skip
    trials: Count = Field(default=0, description="Trials of a σ for each layer, by Bayesian optimization within each budget; the net with one σ for all layers stands beside it (0: that net alone).")  # fmt: skip
    delay: Annotated[float, Field(ge=0, lt=1)] = Field(default=1 / 3, description="Share of the training steps with dense float weights, before sparsity and quantization start.")  # fmt: skip
    order: Literal["sparsify-first", "quantize-first"] = Field(default="sparsify-first", description="What comes first; `quantize-first` is there to compare with.")  # fmt: skip
    gradient: Literal["straight-through", "zero"] = Field(default="straight-through", description="What reaches the weights below the threshold: `straight-through` lets them return, `zero` does not.")  # fmt: skip
    exclude: tuple[str, ...] = Field(default=(), description="Layers that fit one of these patterns stay in fp32.")

    def check_job(self, job: Any) -> None:
        """Refuse a job that makes no net, or asks for what sparse weights cannot do."""
        if not self.sigma and not self.budgets:
            raise ValueError("compression = 'squantizer' needs an entry in squantizer.sigma or squantizer.budgets")
        if self.trials and not self.budgets:
            raise ValueError("squantizer.trials needs an entry in squantizer.budgets")
        if self.trials and job.finetune.start == "fresh":
            raise ValueError("squantizer.trials needs a trained network: finetune.start = 'pretrained'")
        if self.order == "quantize-first" and 1 in self.weight_bits:
            raise ValueError("squantizer.order = 'quantize-first' needs squantizer.weight_bits of at least 2")
        if job.prune.enabled:
            raise ValueError("compression = 'squantizer' removes weights, not filters; set prune.enabled = false")
        if job.finetune.start == "supernet":
            raise ValueError("finetune.start = 'supernet' needs compression = 'search'; use 'pretrained' or 'fresh'")
        if job.finalise.enabled:
            raise ValueError("sparse weights cannot be shared; set finalise.enabled = false")
