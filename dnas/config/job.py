"""The job: everything a search depends on, as frozen, validated, versioned values. Documented in docs/job-file.md."""

# ruff: noqa: E501 - one key to a line, so that the file reads as the table it is

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from dnas.config.fields import (
    ActivationQuantizer,
    AtLeastOne,
    CompressionSection,
    Count,
    CriterionName,
    DeviceName,
    Fraction,
    NonNegative,
    OwnName,
    Parallel,
    Positive,
    ProposerName,
    Ratio,
    Section,
    SourceName,
    TaskName,
    WeightQuantizer,
    Workers,
    WrittenBudget,
)
from dnas.config.training import Distillation, Optimization, TrainingSection
from search_spaces.fields import FilePath, OnceEach, SomeBits
from search_spaces.options import SpaceOptions
from search_spaces.registry import loaded

# The sections of compressions that are rooms of their own, above this one: named, not imported.
if TYPE_CHECKING:
    SquantizerSection = CompressionSection
else:
    SquantizerSection = loaded("dnas.squantizer.section:SquantizerSection", "the section [squantizer]")


class ModelSection(Section):
    """The network, which is never edited."""

    source: str = Field(default="zoo:tiny_resnet", description="`zoo:NAME`, `torchvision:NAME`, `timm:NAME` or your own `package.module:callable`.")  # fmt: skip
    arguments: dict[str, Any] = Field(
        default={}, description="Keyword arguments for the constructor, such as `num_classes`."
    )
    checkpoint: FilePath | None = Field(default=None, examples=["weights.safetensors"], description="Trained weights to start from (safetensors or a weights-only PyTorch file).")  # fmt: skip


class OwnSection(Section):
    """A class or a function of another package or of your own; its import path alone stands for one without arguments."""

    kind: OwnName = Field(description="Its import path, `package.module:name`.")
    arguments: dict[str, Any] = Field(default={}, description="Its keyword arguments.")

    @model_validator(mode="before")
    @classmethod
    def _by_name_alone(cls, written: Any) -> Any:
        return {"kind": written} if isinstance(written, str) else written


class MetricSection(OwnSection):
    """A figure that a class of torchmetrics, or your own with `update` and `compute`, gathers over batches."""

    direction: Literal["larger", "smaller"] | None = Field(default=None, description="Which way is better; needed where the class does not say it.")  # fmt: skip
    unit: str = Field(default="", description="Written behind the figure; `%` shows 100 times of it.")


class TaskSection(Section):
    """What the network is trained for, and judged by."""

    kind: TaskName = Field(default="classification", description="One of ours, or your own `package.module:Class`, a subclass of `dnas.Task`.")  # fmt: skip
    arguments: dict[str, Any] = Field(default={}, examples=[{"criterion": "l1"}], description="Keyword arguments of the task, such as `auxiliary_weight` of a segmentation or `criterion` of a regression.")  # fmt: skip
    exact_layers: tuple[str, ...] | None = Field(default=None, examples=[["head.regression_head.*"]], description="Patterns over the layers that stay in fp32, but for those in `space.fix` (none: the task's own, such as a detector's box regressors).")  # fmt: skip
    metrics: dict[str, MetricSection] = Field(default={}, description="Further metrics by name, each a class of torchmetrics (extra `torchmetrics`) or your own: `{ f1 = { kind = 'torchmetrics.classification:MulticlassF1Score', arguments = { num_classes = 10 } } }`, or the import path alone; `direction = 'smaller'` where the class does not say which way is better, `unit = '%'` to show it in percent. `dnas evaluate` tells all of them.")  # fmt: skip
    metric: str | None = Field(default=None, description="Name of the metric that decides (none: the task's own).")


class DataSection(Section):
    """The data set; a validation split is always held out of the training data. Image files become 8-bit RGB, upright by their EXIF orientation: of 16 bits a channel the upper 8 are kept, transparency is left out, floats and 32-bit integers are refused."""

    source: SourceName = Field(default="digits", description="One of ours, or your own `package.module:callable`.")  # fmt: skip
    root: FilePath | None = Field(
        default=None, examples=["data"], description="Folder that holds (or receives) the data; not needed for digits."
    )
    download: bool = Field(default=False, description="Whether torchvision may download the data into `root`.")
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = Field(default=0.1, description="Share of the training data held out for every choice.")  # fmt: skip
    image_size: AtLeastOne | None = Field(default=None, examples=[224], description="Side in pixels that images are scaled to; of folder images their centre square, for sides above 64 its inner 7/8.")  # fmt: skip
    train_limit: AtLeastOne | None = Field(default=None, examples=[10000], description="Use only this many training images (a stratified subset).")  # fmt: skip
    test_limit: AtLeastOne | None = Field(
        default=None, examples=[1000], description="Use only this many test images (a stratified subset)."
    )
    workers: Parallel = Field(default=0, description="Processes that read, decode and augment images too large to keep in memory; they stay from epoch to epoch, and results do not depend on their number.")  # fmt: skip
    decode: Literal["cpu", "device"] = Field(default="cpu", description="Who decodes JPEG files of an image folder and crops them: the processes, or the device, where it is CUDA. Devices decode with other rounding.")  # fmt: skip
    batch_size: AtLeastOne = Field(default=128, description="Images per training step.")
    crop_padding: Count = Field(default=0, description="Augmentation: random crop after padding by this many pixels.")
    flip: bool = Field(default=False, description="Augmentation: random horizontal flip.")
    cutout: Count = Field(
        default=0, description="Augmentation: side in pixels of a square set to the mean, while fine-tuning."
    )
    transforms: tuple[OwnSection, ...] = Field(default=(), description="Augmentation: what else happens to each training image after crop and flip, in order: transforms of `torchvision.transforms.v2` or your own, such as `['torchvision.transforms.v2:RandAugment', { kind = 'mine:fog', arguments = { most = 0.2 } }]`. What they draw follows from the job's seed.")  # fmt: skip


class DeploymentSection(Section):
    """Where nets will run, as a latency table names it; what is not given may be anything."""

    runtime: str | None = Field(default=None, description="Such as `openvino`.")
    version: str | None = Field(default=None, description="Of the runtime.")
    device: str | None = Field(default=None, description="`cpu` or `cuda`.")
    threads: AtLeastOne | None = Field(default=None, description="How many it has.")
    processor: str | None = Field(default=None, description="A part of its name.")


class CostsSection(Section):
    """Costs beyond size_bytes, bitops, macs and peak_activation_bytes, which are always there."""

    latency_table: FilePath | None = Field(default=None, examples=["latency.csv"], description="What `dnas bench-latency` wrote, or CSV or JSON with columns layer, weight_bits, activation_bits, latency_ms; adds the cost `latency_ms`.")  # fmt: skip
    deployment: DeploymentSection | None = Field(default=None, examples=[{"runtime": "openvino", "threads": 1}], description="Where nets will run: any of `runtime`, `version`, `device`, `threads` and `processor` (a part of its name); a latency table of another place is refused.")  # fmt: skip
    functions: dict[str, str] = Field(default={}, description="Your own costs: name = `package.module:name` of a `dnas.Cost`, or of a function(layer, weight_bits, activation_bits).")  # fmt: skip


class QuantizerSection(Section):
    """How tensors are quantized."""

    weights: WeightQuantizer = Field(default="lsq", description="Quantizer of weights.")  # fmt: skip
    activations: ActivationQuantizer = Field(default="pact", description="Quantizer of input activations.")  # fmt: skip
    per_channel: bool = Field(
        default=False, description="One weight scale per output channel instead of one per layer."
    )
    calibration_batches: AtLeastOne = Field(
        default=4, description="Training batches that set the ranges of activations."
    )


class PretrainSection(TrainingSection):
    """Training of the float network before the search; skipped with 0 epochs, the usual choice with a checkpoint."""

    epochs: Count = Field(default=15, description="Epochs of float training before the search.")


class SearchSection(Optimization):
    """The differentiable search over the supernet."""

    engine: Literal["composite", "branches"] = Field(default="composite", description="`composite`: one convolution per layer whatever the number of candidates; `branches`: a convolution with its own weights and BatchNorm per candidate (DNAS as published).")  # fmt: skip
    budgets: Annotated[tuple[WrittenBudget, ...], OnceEach] = Field(default=(), description="Each budget limits one or several costs: 40000, '40 KiB', '12%' (of fp32) or '50% of uniform8'.")  # fmt: skip
    sampling: Literal["gumbel", "gumbel_hard", "softmax"] = Field(default="gumbel_hard", description="Gumbel-softmax (soft, as in DNAS), its hard straight-through form, which runs single assignments, or plain softmax (EdMIPS).")  # fmt: skip
    loss: Literal["two_sided", "hinge", "log_product", "additive"] = Field(default="two_sided", description="How cost enters the loss: pulled to the budget from both sides, hinge (from above alone), DNAS's CE·β(ln cost)^γ, or EdMIPS's CE + λ·cost/cost₀.")  # fmt: skip
    cost: str = Field(default="size_bytes", description="The cost that `log_product` and `additive` use; the others use those of the budget.")  # fmt: skip
    penalty: NonNegative = Field(default=4.0, description="λ of `two_sided`, `hinge` and `additive`.")
    beta: Positive = Field(default=0.1, description="β of `log_product`; scales the loss only.")
    gamma: NonNegative = Field(default=0.9, description="γ of `log_product`; sets its trade-off.")
    warmup_epochs: Count = Field(default=5, description="Epochs of weight training with θ frozen at uniform; shared by all budgets.")  # fmt: skip
    warmup: Literal["mixture", "sandwich"] = Field(default="mixture", description="What the weights are trained at before θ: `mixture`: samples of the undecided θ; `sandwich`: in each step the widest, the narrowest and `sandwich_samples` other assignments.")  # fmt: skip
    sandwich_samples: AtLeastOne = Field(default=1, description="With `warmup = 'sandwich'`: assignments in each step beside the widest and the narrowest, drawn at about the cost of a budget.")  # fmt: skip
    epochs: Count = Field(default=10, description="Epochs of θ training for each budget.")
    monotone: bool = Field(default=False, description="A larger budget is at least as wide in every layer: the budgets are projected from the largest down, each bounded by the one before.")  # fmt: skip
    weight_updates: Literal["frozen", "epoch", "step"] = Field(default="frozen", description="While θ is trained: keep weights frozen, or alternate with them per epoch or per step.")  # fmt: skip
    theta_fraction: Fraction = Field(default=0.2, description="Share of the training data that trains θ; the rest trains weights.")  # fmt: skip
    temperature_start: Positive = Field(default=1.0, description="Gumbel-softmax temperature at the start.")
    temperature_end: Positive = Field(default=0.5, description="Temperature where the last epoch ends: that of epoch e, counted from 0, is start · (end / start)^(e / epochs).")  # fmt: skip
    learning_rate: Positive = Field(default=0.05, description="Learning rate of the weights at the start of the schedule.")  # fmt: skip
    theta_learning_rate: Positive = Field(default=0.05, description="Learning rate of θ (Adam).")
    theta_weight_decay: NonNegative = Field(default=0.0, description="L2 penalty on θ.")
    distillation: Distillation = Field(default=0.0, description="λ of a loss (1 - λ) task + λ distillation from the float network, for weights and θ.")  # fmt: skip
    sample_every: Count = Field(default=0, description="Draw architectures from P(θ) every so many epochs (0: only decode at the end).")  # fmt: skip
    samples: Count = Field(default=5, description="Architectures drawn each time.")
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="Fuse the mixture of candidates with torch.compile; `auto` does so where the job is long enough to repay it. CUDA has kernels of its own for it.")  # fmt: skip


class FinetuneSection(TrainingSection):
    """Training of each fixed quantized net before it is measured."""

    epochs: Count = Field(default=5, description="Epochs of quantization-aware training of each assignment.")
    learning_rate: Positive = Field(default=0.02, description="Learning rate at the start of the schedule.")
    weight_decay_on: Literal["all", "weights"] = Field(default="weights", description="What decays: only tensors of two and more dimensions (no normalisation, no bias), or all but clips.")  # fmt: skip
    distillation: Distillation | None = Field(default=None, examples=[0.5], description="λ of a loss (1 - λ) task + λ distillation from the float network; default 0.5 where that is trained and the task says how far outputs are from a teacher's, else 0.")  # fmt: skip
    damping: NonNegative = Field(default=0.0, description="λ of a penalty, rising from 0, on the squared distance of each weight below 4 bits to its level, so that it does not go back and forth between two (0: none; try 0.01).")  # fmt: skip
    start: Literal["pretrained", "wider", "supernet", "fresh"] = Field(default="pretrained", description="Weights to start from: the float network, the next wider assignment of the same search or control (the widest from the float network), the supernet, or a new initialization.")  # fmt: skip
    seeds: AtLeastOne = Field(
        default=3, description="Independent fine-tunings of each assignment; the report gives mean ± std."
    )


class ControlsSection(Section):
    """What every search is measured against, in the same way."""

    uniform: Annotated[tuple[SomeBits, ...], OnceEach] = Field(
        default=(2, 3, 4, 8), description="Uniform assignments of these widths."
    )
    ilp: bool = Field(
        default=True, description="A training-free integer program at every budget (HAWQ-V2 sensitivities)."
    )
    measured_ilp: bool = Field(default=False, description="The same program over measured losses: one decision at a time at fewer bits in a net with the widest choice everywhere.")  # fmt: skip
    sensitivity_images: AtLeastOne = Field(default=1024, description="Training images that sensitivities are read from; all where there are fewer.")  # fmt: skip
    random: Count = Field(default=0, description="Random assignments at every budget.")
    own: Annotated[tuple[OwnName, ...], OnceEach] = Field(default=(), description="Your own ways to choose bits at every budget: `package.module:function(question)`.")  # fmt: skip


class ChoiceSection(Section):
    """Choosing by measuring: of several proposals for each budget, the one that is best after a short fine-tuning."""

    enabled: bool | None = Field(default=None, examples=[True], description="Whether what is found for a budget is chosen from a pool: the likeliest under θ, draws of it, the controls, further programs, the neighbouring budgets' and uniform widths brought to the budget. `dnas show RUN --pool` shows it. Where a pruned net is searched, what θ says is taken. None: wherever there are `search.budgets` and nets are fine-tuned.")  # fmt: skip
    draws: Count = Field(default=3, description="Proposals drawn from P(θ).")
    programs: Annotated[int, Field(ge=0, le=100)] = Field(default=2, description="Proposals of each integer program, over expected and over measured losses; each differs in a quarter of the decisions from those before it.")  # fmt: skip
    refined: Annotated[int, Field(ge=0, le=100)] = Field(default=0, description="So many proposals, the best by the loss of the supernet, are refined: the exact program over what single steps of a width do to that loss, time and again.")  # fmt: skip
    learned: Annotated[int, Field(ge=0, le=100)] = Field(default=0, description="Proposals that are learned, one after the other, from what was judged in the first round, of this budget and those before it: the best by a Gaussian process. They are judged as the first round is, and go on with the rest.")  # fmt: skip
    epochs: AtLeastOne = Field(default=1, description="Epochs of fine-tuning in the first round, on the images that train the weights of the search; twice as many in each further one. Judged is the loss on the images of θ, `search.theta_fraction` of the training data.")  # fmt: skip
    rounds: Annotated[int, Field(ge=1, le=16)] = Field(default=2, description="Rounds of successive halving: the better half of a pool, by the mean loss over all rounds so far, goes on to the next round; the best of the last one is chosen.")  # fmt: skip
    finalists: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="So many of the best of the last round have another one (1: none): they are fine-tuned as everything that is reported, and judged by the loss on validation images; the mean over all rounds chooses.")  # fmt: skip
    from_supernet: bool = Field(default=False, description="Whether finalists are judged from the weights of the warm supernet too, and of both the better go on. At few bits these are far ahead in a short fine-tuning, at many behind; they have the updates of the warm-up behind them, which controls have not.")  # fmt: skip


class PruneSection(Section):
    """Pruning of measured assignments: a ratio per channel group by Bayesian optimization, filters removed for real."""

    enabled: bool = Field(default=False, description="Whether the job prunes; `dnas prune` does it later for any assignment.")  # fmt: skip
    assignments: Annotated[tuple[str, ...], OnceEach] = Field(default=("search-*",), description="Patterns over the ids of the assignments to prune.")  # fmt: skip
    at_most: AtLeastOne | None = Field(default=None, examples=[1], description="Prune only so many of them: the most accurate on validation.")  # fmt: skip
    budgets: Annotated[tuple[WrittenBudget, ...], OnceEach] = Field(default=({"size_bytes": "70%"},), description="Limits on any cost (on latency by a table of `dnas bench-latency` alone, which knows fewer channels); a plain % is of the assignment's own cost, else as in `search.budgets`. None: the whole front of size against accuracy.")  # fmt: skip
    trials: AtLeastOne = Field(default=40, description="Configurations tried for each budget.")
    batch: AtLeastOne = Field(default=1, description="Configurations asked for at once; results depend on it.")
    workers: AtLeastOne = Field(default=1, description="Kept from earlier versions: where the job's own `workers` is not given, the whole job has so many.")  # fmt: skip
    proposer: ProposerName = Field(default="scikit-optimize", description="What proposes configurations; `optuna` is an extra.")  # fmt: skip
    criterion: CriterionName = Field(default="auto", description="Which filters go first; your own is `package.module:function(network, group)`, and `auto` is hamming where a group's filters have 1 bit, else geometric.")  # fmt: skip
    max_ratio: Ratio = Field(default=0.8, description="Largest share of a group's channels that may go.")
    min_keep: AtLeastOne = Field(default=2, description="Channels that every group keeps.")
    round_to: AtLeastOne = Field(default=1, description="Kept channels are a multiple of this, or all.")
    exclude: tuple[str, ...] = Field(default=(), description="Groups (`dnas doctor` lists them) that fit one of these patterns are not pruned.")  # fmt: skip
    fix: dict[str, Ratio] = Field(default={}, description="Ratios set by hand: pattern over group names = ratio.")
    proxy_images: AtLeastOne | None = Field(default=None, examples=[1000], description="Validation images that a trial is measured on, the same for all (all by default).")  # fmt: skip
    batchnorm_batches: AtLeastOne = Field(default=10, description="Training batches that re-estimate BatchNorm in each trial.")  # fmt: skip
    finalists: AtLeastOne = Field(
        default=3, description="Best trials that are fine-tuned shortly before one is chosen."
    )
    finetune_epochs: Count = Field(default=1, description="Epochs of that short fine-tuning (0: choose by the trial).")
    controls: tuple[Literal["uniform", "random", "fewer-bits"], ...] = Field(default=("uniform", "random", "fewer-bits"), description="At every budget: one ratio for all groups; as many random trials; fewer bits and all filters.")  # fmt: skip


class FinaliseSection(TrainingSection):
    """The switchable net: chosen configurations as profiles of one net with one stored set of weights."""

    enabled: bool = Field(default=False, description="Whether the job ends with a switchable net; `dnas finalise` makes one later from any run.")  # fmt: skip
    profiles: tuple[str, ...] = Field(default=("front",), description="What it runs: `front` (the points of the front), ids of assignments or patterns over them, uniform widths such as `w4a8`, or files of assignments (`.json`).")  # fmt: skip
    weight_bits: Annotated[tuple[SomeBits, ...], OnceEach] = Field(default=(), description="With `activation_bits`: a profile for every pair of them, beside those of `profiles`.")  # fmt: skip
    activation_bits: Annotated[tuple[SomeBits, ...], OnceEach] = Field(default=(), description="See `weight_bits`.")
    method: Literal["profiles", "sp_nets", "quantizable"] = Field(default="profiles", description="Training: `profiles` (the widest, the narrowest and some others in each step), or as published: `sp_nets` and `quantizable` (all of them in each step).")  # fmt: skip
    epochs: Count = Field(default=10, description="Epochs of training all profiles together.")
    learning_rate: Positive = Field(default=0.02, description="Learning rate at the start of the schedule.")
    weights: WeightQuantizer = Field(default="nested", description="Quantizer of weights; with `nested` one stored integer serves all widths of a weight.")  # fmt: skip
    activations: ActivationQuantizer = Field(default="pact", description="Quantizer of input activations.")
    teacher: Literal["widest", "next", "ensemble", "float", "none"] = Field(default="widest", description="Who teaches the others beside the labels: the widest profile, each the next narrower one, the mean of all, the float network (the widest too), or nobody.")  # fmt: skip
    distillation: Annotated[float, Field(ge=0, le=10)] | None = Field(default=None, examples=[0.5], description="λ: the loss is CE + λ KL in `sp_nets` (default 1), and (1 - λ) CE + λ KL elsewhere (default 0.5).")  # fmt: skip
    sampled: Count = Field(default=1, description="Profiles drawn in each step beside the widest and the narrowest (`method = 'profiles'`).")  # fmt: skip
    all_profiles: bool = Field(default=False, description="Train every profile in every step with `method = 'profiles'` too; to compare with.")  # fmt: skip
    private_norms: bool = Field(default=True, description="A BatchNorm of its own for every profile; false to compare with.")  # fmt: skip
    start: Literal["pretrained", "supernet", "fresh"] = Field(default="pretrained", description="Weights to start from: the float network, the supernet, or a new initialization.")  # fmt: skip
    seeds: AtLeastOne = Field(default=1, description="Independent trainings of the switchable net; the first is the one that is exported.")  # fmt: skip
    alone: bool = Field(default=True, description="Also measure each profile's assignment trained alone, as `[finetune]` says, where that was not done yet.")  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> FinaliseSection:
        if bool(self.weight_bits) != bool(self.activation_bits):
            raise ValueError("a grid needs both weight_bits and activation_bits")
        if self.method != "sp_nets" and self.distillation is not None and self.distillation > 1:
            raise ValueError(f"distillation = {self.distillation} is more than 1: the loss is (1 - λ) CE + λ KL")
        return self


class RaySection(Section):
    """A Ray cluster, where `executor = "ray"`."""

    address: str = Field(default="auto", description="Where it answers: `auto` (the cluster that this machine belongs to, or `RAY_ADDRESS`), `HOST:PORT`, or `local`, which starts one on this machine.")  # fmt: skip
    num_gpus: NonNegative = Field(default=0.0, description="GPUs of each task; a fraction lets several share one.")


class SubmititSection(Section):
    """The queue of a Slurm cluster, where `executor = "submitit"`."""

    cluster: Literal["slurm", "local"] = Field(default="slurm", description="Where jobs go: `slurm`, or `local`, processes of this machine, to try it.")  # fmt: skip
    num_gpus: Count = Field(default=0, description="GPUs of each task.")
    parameters: dict[str, str | int | float | bool | list[str]] = Field(default={"timeout_min": 240}, description="What else submitit is to ask for, by its own names: `timeout_min`, `mem_gb`, `slurm_partition`, `slurm_account`, `slurm_setup` (commands before Python), ...")  # fmt: skip


class LogSection(Section):
    """Logs of a job in other tools, beside its run folder; what they say is what the journal says."""

    tensorboard: bool = Field(default=False, description="Write scalars, the front and every assignment for TensorBoard, into the folder `tensorboard` of the run (extra `tensorboard`).")  # fmt: skip
    mlflow: bool = Field(default=False, description="Send scalars, the job's keys and the files of the front and the assignments to MLflow, at the address that `MLFLOW_TRACKING_URI` names (extra `mlflow`).")  # fmt: skip

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are asked for."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))


class JobConfig(Section):
    """One job, wholly described."""

    schema_version: Literal["dnas.job/1"] = Field(default="dnas.job/1", alias="schema", description="Version of this file's format.")  # fmt: skip
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(default="digits", description="Names the run folder `runs/NAME`.")  # fmt: skip
    seed: Count = Field(default=0, description="Everything random in the job derives from this number.")
    device: DeviceName = Field(default="auto", description="Where to compute: `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`, or `auto`, which takes CUDA when there is one.")  # fmt: skip
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="Precision of convolutions and products in training steps: `auto` takes bf16 on CUDA where the device computes in it, else fp32. Quantizers and measurements are always in fp32.")  # fmt: skip
    channels_last: Literal["auto"] | bool = Field(default="auto", description="Keep images with their channels last in memory; `auto` does where it takes bf16, as such devices are faster with it.")  # fmt: skip
    cuda_graphs: bool = Field(default=True, description="Record the passes of a training step as CUDA graphs, which saves the time to launch them; a network that cannot be recorded is told, and trained step by step with the same results.")  # fmt: skip
    deterministic: bool = Field(default=False, description="Take only operations that give the same bits each time, on CUDA too, where they are slower.")  # fmt: skip
    synchronise_batchnorm: bool = Field(default=False, description="Where several processes train together: take BatchNorm's statistics over the whole batch, not over the rows of each process.")  # fmt: skip
    compression: Literal["search", "squantizer", "switchable"] = Field(default="search", description="What the job does: search bits per layer, train sparse and low-bit weights at once (`[squantizer]`), or train a switchable net without a search (`[finalise]`; `dnas train-switchable`).")  # fmt: skip
    pipeline: tuple[Literal["search", "prune"], ...] = Field(default=("search", "prune"), description="Order of the bit search and of pruning (left out where `prune.enabled` is false): `['search', 'prune']`, `['prune']`, `['prune', 'search']` or `['search', 'prune', 'search']`. A search after pruning starts from the first pruned assignment.")  # fmt: skip
    threads: Parallel = Field(default=0, description="CPU threads of each task (0: PyTorch's choice, shared out among the workers).")  # fmt: skip
    executor: Literal["local", "ray", "submitit"] = Field(default="local", description="Who carries out the tasks of the job, such as a fine-tuning: `local` processes, a `ray` cluster (extra `ray`), or jobs of Slurm's queue (extra `submitit`). Results do not depend on it.")  # fmt: skip
    workers: Workers | None = Field(default=None, examples=[2], description="Tasks at once, each in a process of its own: a number, or `auto` (cores ÷ threads, or one for each GPU). None: the job's own process does one after the other; on a `ray` cluster as many as it has room for, in a queue 64. Results do not depend on it, with equal threads.")  # fmt: skip
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    data: DataSection = DataSection()
    space: SpaceOptions = SpaceOptions()
    costs: CostsSection = CostsSection()
    quantizer: QuantizerSection = QuantizerSection()
    pretrain: PretrainSection = PretrainSection()
    search: SearchSection = SearchSection()
    finetune: FinetuneSection = FinetuneSection()
    controls: ControlsSection = ControlsSection()
    choice: ChoiceSection = ChoiceSection()
    prune: PruneSection = PruneSection()
    squantizer: SquantizerSection = SquantizerSection()
    ray: RaySection = RaySection()
    submitit: SubmititSection = SubmititSection()
    finalise: FinaliseSection = FinaliseSection()
    log: LogSection = LogSection()

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _consistent(self) -> JobConfig:
        if not isinstance(self.space.capability, str | None):
            raise ValueError("space.capability is a table; write it into a JSON file and name that file")
        own = getattr(self, self.compression, None)
        if isinstance(own, CompressionSection):
            own.check_job(self)
            return self
        if self.compression == "switchable":
            return self._switchable_consistent()
        self._check_pipeline()
        if "search" not in self.pipeline:
            return self
        if self.search.loss in ("two_sided", "hinge") and not self.search.budgets:
            raise ValueError(f"search.loss = '{self.search.loss}' needs at least one entry in search.budgets")
        if self.chooses and not self.search.budgets:
            raise ValueError(
                "choice.enabled needs at least one entry in search.budgets: a choice is one within a budget"
            )
        if self.chooses and self.choice.from_supernet and self.finetune.start != "pretrained":
            raise ValueError(
                f"choice.from_supernet chooses between the float network's weights and the supernet's, and "
                f"finetune.start = '{self.finetune.start}' has chosen already; set one of them"
            )
        if self.space.pairing == "pairs" and not self.space.pairs:
            raise ValueError("space.pairing = 'pairs' needs space.pairs")
        if self.search.temperature_end > self.search.temperature_start:
            raise ValueError("search.temperature_end must not exceed search.temperature_start")
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """The searches and prunings of the job, in order."""
        if self.compression != "search":
            return ()
        return tuple(step for step in self.pipeline if step == "search" or self.prune.enabled)

    @property
    def chooses(self) -> bool:
        """Whether what is found for a budget is chosen by measuring; only a search of the whole net is."""
        wanted = self.choice.enabled
        if wanted is None:
            wanted = bool(self.search.budgets) and self.finetune.epochs > 0
        return wanted and self.order[:1] == ("search",)

    def _switchable_consistent(self) -> JobConfig:
        if self.prune.enabled:
            raise ValueError("compression = 'switchable' does not prune; set prune.enabled = false")
        if "supernet" in (self.finetune.start, self.finalise.start):
            raise ValueError("there is no supernet with compression = 'switchable'; start = 'pretrained' or 'fresh'")
        return self

    def _check_pipeline(self) -> None:
        allowed = [("search",), ("prune",), ("search", "prune"), ("prune", "search"), ("search", "prune", "search")]
        if self.pipeline not in allowed:
            orders = ", ".join(str(list(order)) for order in allowed)
            raise ValueError(f"pipeline = {list(self.pipeline)} is not one of {orders}")
        if self.pipeline[0] == "prune" and not self.prune.enabled:
            raise ValueError(
                f"pipeline = {list(self.pipeline)} begins with pruning, which prune.enabled = false turns off"
            )
