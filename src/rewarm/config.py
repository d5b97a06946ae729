"""The typed configuration: one frozen dataclass for each group under `conf/`.

A `Config` says what the user asked for, `rewarm.checks` refuses what cannot be, and `rewarm.plan` works out what it
means in steps. This module imports neither torch nor transformers, so that a mistake is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

SIDES = ("upstream", "downstream")


@dataclass(frozen=True)
class ScheduleConfig:
    """The shape of the learning-rate curve."""

    name: str = MISSING
    """One of constant, linear, cosine, cosine_neox, wsd, inverse_sqrt, infinite_cosine,
    infinite_inverse_sqrt, no_rewarm."""
    decay_fraction: float | None = None
    """wsd: share of the horizon that the final decay takes."""
    decay_shape: str | None = None
    """wsd: linear, cosine or 1-sqrt."""
    cooldown_end: float | None = None
    """infinite_*: where the constant LR is reached, as a share of the horizon."""
    constant_end: float | None = None
    """infinite_*: where the final anneal starts, as a share of the horizon."""
    constant_lr_ratio: float | None = None
    """infinite_*: the constant LR as a share of `max_lr`."""
    alpha: float | None = None
    """infinite_inverse_sqrt: steepness of the cool-down."""
    timescale: float | None = None
    """inverse_sqrt: share of the horizon over which the LR falls to 1/sqrt(2) of `max_lr`."""


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-NeoX shape for `init=scratch`, and what is known of the model's pre-training."""

    name: str = MISSING
    """Name of the model, as figures and tables show it."""
    id: str | None = None
    """Hugging Face id or folder whose architecture `init=scratch` takes instead of the shape below."""
    init: str = MISSING
    """The `init` that a run of this model starts from unless another is asked for."""
    earlier: list[str] = field(default_factory=list)
    """Two checkpoints from earlier in the pre-training, as an `init` each: an early one, and one after it."""
    tokenizer: str = MISSING
    """The model's tokenizer: `builtin`, a Hugging Face id (`id@revision`), or a folder or `tokenizer.json`."""
    peak_lr: float = MISSING
    """Highest LR of the pre-training: the default `max_lr`."""
    final_lr: float = MISSING
    """LR at which the pre-training ended: that of the constant baseline."""
    vocab_size: int | None = None
    """Rows of the embedding; the tokenizer may have fewer."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    layers: int | None = None
    """Number of transformer blocks."""
    heads: int | None = None
    """Attention heads of a block."""
    intermediate_size: int | None = None
    """Width of the feed-forward layer."""
    max_context: int | None = None
    """Longest context, in tokens."""
    rotary_pct: float = 0.25
    """Share of each head's dimensions that rotary embeddings turn."""


@dataclass(frozen=True)
class DataConfig:
    """Where upstream and downstream text come from, and how it becomes tokens."""

    name: str = MISSING
    """Name of the pair."""
    upstream: Any = MISSING
    """Old data: a path, or a mapping with the keys of `SourceConfig`."""
    downstream: Any = MISSING
    """New data: likewise."""
    train: str = "downstream"
    """Side that is trained on: downstream, or upstream to continue on the same data or to pretrain."""
    tokenizer: str = MISSING
    """The tokenizer, as in `model.tokenizer`: the model's own unless another is asked for."""
    text_field: str = "text"
    """Field of a record that holds its text."""
    domain_field: str | None = None
    """Field of a record that holds its domain; `a.b` looks inside a struct or a JSON string."""
    validation_tokens: Any = MISSING
    """Tokens of each validation set; every evaluation sees all of them."""
    shard_tokens: Any = "16M"
    """Tokens of one shard of the token store."""
    shuffle_window: int = 8192
    """Sequences among which the training order is shuffled."""
    workers: int = 0
    """Processes that tokenise; 0: threads of this one."""
    max_bad_share: float = 0.001
    """Records that cannot be used (malformed, without text) are passed over up to this share of all."""
    patience: float = 300.0
    """Seconds for which a hub that fails while it is read is asked again."""


@dataclass(frozen=True)
class SourceConfig:
    """One stream of documents."""

    kind: str = "files"
    """builtin, files or hub."""
    path: str | None = None
    """files: a file, a folder or a glob."""
    validation_path: str | None = None
    """files: where validation text comes from; without it, a share of `path` chosen by document hash."""
    id: str | None = None
    """hub: the dataset, `owner/name`."""
    revision: str = "main"
    """hub: branch, tag or commit of the dataset."""
    split: str = "train"
    """hub: split to train on."""
    validation_split: str = "validation"
    """hub: split to validate on."""
    validation_id: str | None = None
    """The dataset of the hub that holds the validation split, where it is another one."""
    validation_revision: str = "main"
    """Branch, tag or commit of `validation_id`."""
    weights: dict[str, float] = field(default_factory=dict)
    """builtin: share of each domain in the text."""
    validation_share: float = 0.01
    """Share of the documents, chosen by hash, that serves validation where nothing else names validation text."""
    subset: str | None = None
    """hub: configuration of the dataset, where it has several."""
    tokens_field: str | None = None
    """Field of a record that holds token ids, which are taken as they stand; the text field is then not read."""
    text_field: str | None = None
    """Overrides `data.text_field` for this source."""
    domain_field: str | None = None
    """Overrides `data.domain_field` for this source."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and the gradient clip."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay; LayerNorm weights and all biases have none."""
    clip: float = 1.0
    """Largest global norm of the gradient."""


@dataclass(frozen=True)
class ScalerConfig:
    """Dynamic loss scaling, for FP16."""

    init_scale: float = 4096.0
    """Loss scale at the first step."""
    growth_interval: int = 1000
    """Steps without overflow after which the scale doubles."""
    hysteresis: int = 2
    """Overflows that are let pass before the scale is halved."""
    min_scale: float = 1.0
    """The scale never falls below this."""


@dataclass(frozen=True)
class TrainConfig:
    """The shape of a step."""

    batch_size: int = MISSING
    """Sequences of one optimizer step, over all processes."""
    micro_batch_size: int | None = None
    """Sequences that go through the model at once; found by rewarm where not given."""
    context: int = MISSING
    """Tokens of a sequence."""
    log_every: int = 10
    """Steps between two lines of training metrics; each is the mean since the last."""
    max_bad_steps: int = 25
    """Non-finite steps in a row after which the run stops."""
    parallel: str = "ddp"
    """How several processes (torchrun) hold the model: ddp, each all of it; fsdp, each its share of it."""
    compile: bool | None = None
    """Compile the model with torch.compile; null: where the run is long enough for that to save time."""
    threads: int | None = None
    """CPU threads; torch's own choice where not given."""
    peak_tflops: float | None = None
    """What the device can do, in TFLOP/s, for the metric mfu; known for common GPUs, else mfu is left out."""
    tokens_per_second: float | None = None
    """dry_run: the speed to work the hours out with; those of several speeds where not given."""


@dataclass(frozen=True)
class EvaluationConfig:
    """When both validation sets are scored. Step 0 and the last step always are."""

    every: int = MISSING
    """Steps between two evaluations."""
    dense_every: int = MISSING
    """Steps between two evaluations early in the run."""
    dense_until: float = 0.02
    """Share of the horizon that counts as early; the warm-up always does."""
    batch_size: int | None = None
    """Sequences scored at once; found by rewarm where not given."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved. The last step always is."""

    every: int = MISSING
    """Steps between two checkpoints."""
    keep: int = 2
    """How many of the latest checkpoints stay; 0 keeps all."""
    keep_every: int | None = None
    """Checkpoints at multiples of this many steps are never removed."""
    milestones: list[Any] = field(default_factory=list)
    """Tokens (10M, 1.5B) at which a checkpoint is saved, at the nearest step, and never removed."""


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics go beside `metrics.jsonl`."""

    names: list[str] = field(default_factory=list)
    """Trackers to use: wandb, tensorboard."""
    project: str = "rewarm"
    """W&B project."""
    entity: str | None = None
    """W&B user or team."""
    mode: str = "auto"
    """W&B mode: auto (online with an account, else offline), online, offline."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    patience: float = 30.0
    """Seconds that the end of a run waits for a tracker before it is left behind."""


@dataclass(frozen=True)
class ExperimentConfig:
    """The question that a sweep's arms answer together."""

    name: str | None = None
    """Name of the experiment."""
    question: str = ""
    """The question, for the report."""
    horizon: Any = None
    """Horizon of every arm, in tokens."""
    budget: Any = None
    """Budget of the arms that the paper shows from beginning to end."""
    short: Any = None
    """Budget of the arms of which the paper shows only the beginning."""


@dataclass(frozen=True)
class ArmConfig:
    """One run's role in an experiment."""

    name: str | None = None
    """Name of the arm."""


@dataclass(frozen=True)
class Config:
    """A whole run. What people sweep stands at the top."""

    max_lr: float = MISSING
    """The LR that the warm-up rises to."""
    min_lr_ratio: float = 0.1
    """The LR at the end of the schedule, as a share of `max_lr`."""
    warmup: float = 0.01
    """Length of the linear warm-up, as a share of the horizon; 0 means none."""
    budget: Any = MISSING
    """Tokens to train on (50M, 1.5B, 2e9)."""
    horizon: Any = None
    """Tokens over which the schedule is laid out; the budget where not given."""
    replay: float = 0.0
    """Share of every batch that comes from upstream."""
    init: str = MISSING
    """Where weights come from: scratch, builtin, builtin@step, owner/name@revision, a folder, run@step, and
    builtin@lossX or run@lossX for the checkpoint whose upstream loss was nearest to X."""
    seed: int = 0
    """Seed of the data order, and of the weights where they start from scratch."""
    precision: str = "auto"
    """auto, fp16, bf16 or fp32."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    init_optimizer: bool = False
    """Take the optimizer's moments along with the weights of `init`, from a checkpoint of rewarm's own."""
    extend: bool = False
    """Let the run in `run_dir` go on with another budget or horizon than it was begun with."""
    max_hours: float | None = None
    """Save and leave before this many hours have passed since the command was started."""
    run_dir: str = MISSING
    """Folder of the run, or of all runs of a sweep."""
    dry_run: bool = False
    """Print what the run would be, and do nothing."""
    profile: bool = False
    """Profile a few steps into the folder profile/ of the run: a trace, and a table of where the time went."""
    tasks: list[str] = field(default_factory=list)
    """rewarm eval: tasks of lm-evaluation-harness to score, by name or by the path of a task file."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scaler: ScalerConfig = field(default_factory=ScalerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    arm: ArmConfig = field(default_factory=ArmConfig)


def conf_dir() -> Path:
    """Return the folder of the shipped configs: inside the package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "conf", package.parents[1] / "conf"
    return installed if installed.is_dir() else checkout


def schema() -> DictConfig:
    """Return the typed, empty config that Hydra merges the files of `conf/` into.

    OmegaConf marks what comes from frozen dataclasses read-only; here it must still be filled.
    """

    def thaw(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)  # noqa: SLF001 - reading through [] would resolve missing values
            if isinstance(child, DictConfig) and not child._is_none():  # noqa: SLF001
                thaw(child)

    node: DictConfig = OmegaConf.structured(Config)
    thaw(node)
    return node
