"""The typed configuration: one frozen dataclass for each group under `conf/`.

A `Config` says what the user asked for. Each field's annotation says what it takes; what several must be together
is in `checks`, and `plan` works out what it all means in steps. Neither torch nor transformers is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rewarm.config.sweep_schema import ArmConfig, ExperimentConfig, ForkConfig, SweepConfig, TrackerConfig
from rewarm.config.values import (
    MISSING,
    Choice,
    Count,
    LearningRate,
    LossScale,
    PartialShare,
    PositiveShare,
    Seconds,
    Share,
    TokenCount,
    Tokens,
    Within,
    Words,
)
from rewarm.schedules import DECAY_SHAPES, SCHEDULES

SIDES = ("upstream", "downstream")
PRECISIONS = ("auto", "fp16", "bf16", "fp32")


@dataclass(frozen=True)
class ScheduleConfig:
    """The shape of the learning-rate curve."""

    name: Annotated[str, Choice(*SCHEDULES)] = MISSING
    """The shape of the curve."""
    decay_fraction: PositiveShare | None = None
    """wsd: share of the horizon that the final decay takes."""
    decay_shape: Annotated[str, Choice(*DECAY_SHAPES)] | None = None
    """wsd: shape of the final decay."""
    cooldown_end: PositiveShare | None = None
    """infinite_*: where the constant LR is reached, as a share of the horizon."""
    constant_end: PositiveShare | None = None
    """infinite_*: where the final anneal starts, as a share of the horizon."""
    constant_lr_ratio: PositiveShare | None = None
    """infinite_*: the constant LR as a share of `max_lr`."""
    alpha: Annotated[float, Within(1e-3, 1e6)] | None = None
    """infinite_inverse_sqrt: steepness of the cool-down."""
    timescale: PositiveShare | None = None
    """inverse_sqrt: share of the horizon over which the LR falls to 1/sqrt(2) of `max_lr`."""


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-NeoX shape for `init=scratch`, and what is known of the model's pre-training."""

    name: Words = MISSING
    """Name of the model, as figures and tables show it."""
    id: Words | None = None
    """Hugging Face id or folder whose architecture `init=scratch` takes instead of the shape below."""
    init: Words = MISSING
    """The `init` that a run of this model starts from unless another is asked for."""
    earlier: list[Words] = field(default_factory=list)
    """Two checkpoints from earlier in the pre-training, as an `init` each: an early one, and one after it."""
    tokenizer: Words = MISSING
    """The model's tokenizer: `builtin`, a Hugging Face id (`id@revision`), or a folder or `tokenizer.json`."""
    peak_lr: LearningRate = MISSING
    """Highest LR of the pre-training: the default `max_lr`."""
    final_lr: Annotated[float, Within(0, 1, note="such as 6e-5")] = MISSING
    """LR at which the pre-training ended: that of the constant baseline."""
    vocab_size: Annotated[int, Within(2, 2**24)] | None = None
    """Rows of the embedding; the tokenizer may have fewer."""
    hidden_size: Annotated[int, Within(1, 2**17)] | None = None
    """Width of the residual stream."""
    layers: Annotated[int, Within(1, 1000)] | None = None
    """Number of transformer blocks."""
    heads: Annotated[int, Within(1, 1024)] | None = None
    """Attention heads of a block."""
    intermediate_size: Annotated[int, Within(1, 2**20)] | None = None
    """Width of the feed-forward layer."""
    max_context: Annotated[int, Within(1, 2**24)] | None = None
    """Longest context, in tokens."""
    rotary_pct: Share = 0.25
    """Share of each head's dimensions that rotary embeddings turn."""
    dropout: bool = False
    """Train with the dropout that the model's own config says, instead of without any."""
    router_loss: Annotated[float, Within(0, 10, note="such as 0.01")] | None = None
    """Mixtures of experts: weight of the load-balancing loss; null: as the model's own config says."""


@dataclass(frozen=True)
class SourceConfig:
    """One stream of documents."""

    SHORT: ClassVar = "path"
    NAMED: ClassVar = {name: {"kind": name} for name in ("proxy", "self")}
    """Words that stand for a source; any other text is a path."""

    kind: Annotated[str, Choice("builtin", "files", "hub", *NAMED)] = "files"
    """Where its documents lie; proxy: where those of `data.proxy` do; self: what the start model writes."""
    path: Words | None = None
    """files: a file, a folder or a glob."""
    validation_path: Words | None = None
    """A file, a folder or a glob of validation text, whatever the kind; it is never trained on."""
    id: Words | None = None
    """hub: the dataset, `owner/name`."""
    revision: Words = "main"
    """hub: branch, tag or commit of the dataset."""
    split: Words = "train"
    """hub: split to train on."""
    validation_split: Words = "validation"
    """hub: split to validate on."""
    validation_id: Words | None = None
    """A dataset of the hub that holds the validation split, whatever the kind."""
    validation_revision: Words = "main"
    """Branch, tag or commit of `validation_id`."""
    weights: dict[str, Share] = field(default_factory=dict)
    """builtin: share of each domain in the text."""
    validation_share: Annotated[float, Within(1e-6, below=1)] = 0.01
    """Share of the documents, chosen by hash, that serves validation where nothing else names validation text."""
    subset: Words | None = None
    """hub: configuration of the dataset, where it has several."""
    tokens_field: Words | None = None
    """Field of a record that holds token ids, which are taken as they stand; the text field is then not read."""
    text_field: Words | None = None
    """Overrides `data.text_field` for this source."""
    domain_field: Words | None = None
    """Overrides `data.domain_field` for this source."""


@dataclass(frozen=True)
class DataConfig:
    """Where upstream and downstream text come from, and how it becomes tokens."""

    name: Words = MISSING
    """Name of the pair."""
    upstream: SourceConfig = MISSING
    """Old data; `proxy` where they cannot be had."""
    downstream: SourceConfig = MISSING
    """New data: likewise."""
    train: Annotated[str, Choice(*SIDES)] = "downstream"
    """Side that is trained on; upstream to continue on the same data or to pretrain."""
    tokenizer: Words = MISSING
    """The tokenizer, as in `model.tokenizer`: the model's own unless another is asked for."""
    text_field: Words = "text"
    """Field of a record that holds its text."""
    domain_field: Words | None = None
    """Field of a record that holds its domain; `a.b` looks inside a struct or a JSON string."""
    validation_tokens: Annotated[int, TokenCount(most=10**10)] = MISSING
    """Tokens of each validation set; every evaluation sees all of them."""
    shard_tokens: Annotated[int, TokenCount(100, 10**9)] = 16_000_000
    """Tokens of one shard of the token store."""
    shuffle_window: Annotated[int, Within(1, 10**6)] = 8192
    """Sequences among which the training order is shuffled."""
    workers: Annotated[int, Within(0, 256)] = 0
    """Processes that tokenise; 0: threads of this one."""
    max_bad_share: PartialShare = 0.001
    """Records that cannot be used (malformed, without text) are passed over up to this share of all."""
    patience: Seconds = 300.0
    """Seconds for which a hub that fails while it is read is asked again."""
    proxy: SourceConfig = field(default_factory=SourceConfig)
    """General text that stands in for old data: to measure by, and to replay."""

    def source(self, side: str) -> SourceConfig:
        """Return the source of a side."""
        return self.behind(self.upstream if side == "upstream" else self.downstream)

    def behind(self, source: SourceConfig) -> SourceConfig:
        """Return the source that a word stands for: that of `proxy`, or itself."""
        return self.proxy if source.kind == "proxy" else source


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and the gradient clip."""

    beta1: PartialShare = 0.9
    """Decay of the first moment."""
    beta2: PartialShare = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Within(1e-20, 1)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Within(0, 10)] = 0.1
    """Decoupled weight decay; LayerNorm weights and all biases have none."""
    clip: Annotated[float, Within(1e-6, 1e6)] = 1.0
    """Largest global norm of the gradient."""


@dataclass(frozen=True)
class AnchorConfig:
    """What holds a run to its start, where there is no old data to replay."""

    l2: Annotated[float, Within(0, 1e4)] = 0.0
    """Pull of each update towards the start weights, as weight decay pulls to 0: `lr * l2` of the way; 0 is none."""
    kl: Annotated[float, Within(0, 1e3)] = 0.0
    """Weight of the divergence from what the start model predicts on the same tokens, in the loss; 0 is none."""


@dataclass(frozen=True)
class GenerateConfig:
    """How the start model writes the text that replay then reads (`replay_source=self`)."""

    temperature: Annotated[float, Within(1e-3, 10)] = 1.0
    """What the logits are divided by: below 1 the likely becomes likelier."""
    top_p: PositiveShare = 1.0
    """Each token is one of the likeliest that together have this probability."""
    length: Count | None = None
    """Most tokens of a text; as many as `train.context` where not given."""
    prompts: Words | None = None
    """File of which each line begins a text, by turns; without one the end-of-text token alone does."""
    batch_size: Annotated[int, Within(1, 2**16)] = 64
    """Texts that are written at once."""
    dedup: Annotated[int, Within(0, 10**6)] = 512
    """Latest texts among which none is kept twice; 0 keeps all."""
    max_repeated: Share = 0.5
    """A text is kept if at most this share of its 8-grams of tokens stood in it before."""


@dataclass(frozen=True)
class AverageConfig:
    """A running average of the weights, scored beside them."""

    half_life: PositiveShare | None = None
    """Share of the horizon after which weights count half; not given, there is no average."""
    every: Count = 1
    """Updates between two that are taken into it."""
    device: Annotated[str, Choice("model", "host")] = "model"
    """Where it lies: beside the model, 4 bytes a parameter, or in the host's memory."""


@dataclass(frozen=True)
class ScalerConfig:
    """Dynamic loss scaling, for FP16."""

    init_scale: LossScale = 4096.0
    """Loss scale at the first step, on the mean loss of 8,192 tokens whatever the batch is."""
    growth_interval: Count = 1000
    """Steps without overflow after which the scale doubles."""
    hysteresis: Count = 2
    """Overflows that are let pass before the scale is halved."""
    min_scale: LossScale = 1.0
    """The scale never falls below this."""


@dataclass(frozen=True)
class TrainConfig:
    """The shape of a step."""

    batch_size: Annotated[int, Within(1, 2**20)] = MISSING
    """Sequences of one optimizer step, over all processes."""
    micro_batch_size: Annotated[int, Within(1, 2**20)] | None = None
    """Sequences that go through the model at once; found by rewarm where not given."""
    context: Annotated[int, Within(1, 2**24)] = MISSING
    """Tokens of a sequence."""
    log_every: Count = 10
    """Steps between two lines of training metrics; each is the mean since the last."""
    max_bad_steps: Count = 25
    """Non-finite steps in a row after which the run stops."""
    parallel: Annotated[str, Choice("ddp", "fsdp", "hsdp")] = "ddp"
    """How several processes (torchrun) hold the model: ddp, each all; fsdp, each its share; hsdp, each node all."""
    recompute: Annotated[str, Choice("none", "selective", "full")] = "none"
    """What the backward pass computes again to save memory: full, each block; selective, all but its products."""
    compile: bool | None = None
    """Compile the model with torch.compile; null: where the run is long enough for that to save time."""
    deterministic: bool | None = None
    """Use only kernels that give the same bits each time, or stop; null: on a CPU, where that costs nothing."""
    threads: Annotated[int, Within(1, 1024)] | None = None
    """CPU threads; torch's own choice where not given."""
    peak_tflops: Annotated[float, Within(1e-6, 1e9)] | None = None
    """What the device can do, in TFLOP/s, for the metric mfu; known for common GPUs, else mfu is left out."""
    tokens_per_second: Annotated[float, Within(1e-3, 1e12)] | None = None
    """dry_run: the speed to work the hours out with; those of several speeds where not given."""


@dataclass(frozen=True)
class EvaluationConfig:
    """When both validation sets are scored. Step 0 and the last step always are."""

    every: Count | None = None
    """Steps between two evaluations; not given, a tenth of the run, at most 50."""
    dense_every: Count = MISSING
    """Steps between two evaluations early in the run."""
    dense_until: Share = 0.02
    """Share of the horizon that counts as early; the warm-up always does."""
    batch_size: Annotated[int, Within(1, 2**20)] | None = None
    """Sequences scored at once; found by rewarm where not given."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved. The last step always is."""

    every: Count = MISSING
    """Steps between two checkpoints."""
    keep: Annotated[int, Within(0, 10**9)] = 2
    """How many of the latest checkpoints stay; 0 keeps all."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this many steps are never removed."""
    milestones: list[Tokens] = field(default_factory=list)
    """Tokens (10M, 1.5B) at which a checkpoint is saved, at the nearest step, and never removed."""


@dataclass(frozen=True)
class Config:
    """A whole run. What people sweep stands at the top."""

    max_lr: LearningRate = MISSING
    """The LR that the warm-up rises to."""
    min_lr_ratio: Annotated[float, Within(0, 1, note="the minimum LR as a share of max_lr")] = 0.1
    """The LR at the end of the schedule, as a share of `max_lr`."""
    warmup: Annotated[float, Within(0, 1, note="a share of the horizon")] = 0.01
    """Length of the linear warm-up, as a share of the horizon; 0 means none."""
    budget: Tokens = MISSING
    """Tokens to train on, over which the schedule is laid out."""
    horizon: Tokens | None = None
    """Tokens over which the schedule is laid out; the budget where not given."""
    stop: Tokens | None = None
    """Tokens after which the run ends on the same curve; at the end of the budget where not given."""
    replay: Annotated[float, Within(0, below=1, note="a share of every batch")] = 0.0
    """Share of every batch that comes from upstream, or from `replay_source`."""
    replay_source: SourceConfig | None = None
    """Where replayed text comes from: `self`, which the start model writes first, or a source; null: upstream."""
    init: Words = MISSING
    """Where weights come from: scratch, builtin, builtin@step, owner/name@revision, a folder, run@step, and
    builtin@lossX or run@lossX for the checkpoint whose upstream loss was nearest to X."""
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    """Seed of the data order, and of the weights where they start from scratch."""
    precision: Annotated[str, Choice(*PRECISIONS)] = "auto"
    """Of the products in the model; auto takes what the device does best."""
    device: Annotated[str, Choice("auto", "cpu", "cuda", "mps")] = "auto"
    """Where the model is; auto is a GPU where there is one."""
    init_optimizer: bool = False
    """Take the optimizer's moments along with the weights of `init`, from a checkpoint of rewarm's own."""
    extend: bool = False
    """Let the run in `run_dir` go on with another budget or horizon than it was begun with."""
    allow_lost_metrics: bool = False
    """Let the run in `run_dir` go on though lines of its metrics.jsonl are damaged or missing; reports say so."""
    max_hours: Annotated[float, Within(1e-6, 1e6)] | None = None
    """Save and leave before this many hours have passed since the command was started."""
    run_dir: Words = MISSING
    """Folder of the run, or of all runs of a sweep."""
    dry_run: bool = False
    """Print what the run would be, and do nothing."""
    profile: bool = False
    """Profile a few steps into the folder profile/ of the run: a trace, and a table of where the time went."""
    tasks: list[Words] = field(default_factory=list)
    """rewarm eval: tasks of lm-evaluation-harness to score, by name or by the path of a task file."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    scaler: ScalerConfig = field(default_factory=ScalerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    arm: ArmConfig = field(default_factory=ArmConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    fork: ForkConfig = field(default_factory=ForkConfig)

    def source(self, side: str) -> SourceConfig:
        """Return the source of a side, or of what is replayed (`replay`)."""
        if side == "replay":
            return self.data.behind(self.replay_source or self.data.upstream)
        return self.data.source(side)

    @property
    def proxied(self) -> bool:
        """Return whether what is called upstream is a proxy of the old data."""
        return self.data.upstream.kind == "proxy"

    @property
    def replayed(self) -> str:
        """Return what replayed text is called: `upstream`, or `replay` where it has a source of its own."""
        return "replay" if self.replay_source else "upstream"
