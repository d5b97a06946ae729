"""The typed configuration: one frozen dataclass for each group under `conf/`, checked once, at the door.

A `Config` says what the user asked for; `rewarm.plan` works out what that means in steps. This module imports
neither torch nor transformers, so that a mistake in a config is answered at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from rewarm.errors import UserError, choice, nearest
from rewarm.schedules import DECAY_SHAPES, SCHEDULES, SHAPE_PARAMETERS

SIDES = ("upstream", "downstream")
PRECISIONS = ("auto", "fp16", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda", "mps")
TRACKERS = ("wandb", "tensorboard")
SOURCES = ("builtin", "files", "hub")


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
    compile: bool = False
    """Compile the model with torch.compile."""
    threads: int | None = None
    """CPU threads; torch's own choice where not given."""
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


def parse_tokens(name: str, value: object) -> int:
    """Return a positive number of tokens out of `50M`, `1.5B`, `2e9` or a number; `name` is for the error."""
    advice = f"{name}={value}: not a number of tokens; write for example 50M, 1.5B or 2e9"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(advice)
    match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*([kmbt]?)", str(value).strip().lower())
    if match is None:
        raise UserError(advice)
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]]
    tokens = float(match[1].replace("_", "")) * scale
    if not math.isfinite(tokens) or round(tokens) < 1:
        raise UserError(f"{name}={value}: must be at least one token")
    return round(tokens)


def source(data: DataConfig, side: str) -> SourceConfig:
    """Return the source of `side` (upstream or downstream): a path stands for local files."""
    value = getattr(data, side)
    given = {"path": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        raise UserError(f"data.{side}={value}: must be a path or a source; see conf/data/ for examples")
    known = {f.name for f in fields(SourceConfig)}
    for key in given:
        if key not in known:
            raise UserError(f"data.{side}.{key}: unknown key{nearest(str(key), known)}")
    merged = OmegaConf.merge(
        OmegaConf.structured(SourceConfig(text_field=data.text_field, domain_field=data.domain_field)), {}
    )
    OmegaConf.set_readonly(merged, None)
    for key, item in given.items():
        try:
            OmegaConf.update(merged, str(key), item, merge=False)
        except Exception as error:
            raise UserError(f"data.{side}.{key}={item}: {str(error).splitlines()[0]}") from error
    result = OmegaConf.to_object(merged)
    assert isinstance(result, SourceConfig)
    _check_source(side, result)
    return result


def _check_source(side: str, src: SourceConfig) -> None:
    if src.kind not in SOURCES:
        raise choice(f"data.{side}.kind", src.kind, SOURCES)
    needed = {"files": "path", "hub": "id", "builtin": "weights"}[src.kind]
    if not getattr(src, needed):
        raise UserError(f"data.{side}.{needed}: a source of kind {src.kind} needs it")
    if not 0 < src.validation_share < 1:
        raise UserError(f"data.{side}.validation_share={src.validation_share}: is a share and must lie within 0..1")


def _require(ok: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not ok:
        raise UserError(message)


def check(config: Config) -> Config:
    """Raise a `UserError` for the first impossible value, and return the config."""
    c = config
    _require(c.tracker.patience > 0, f"tracker.patience={c.tracker.patience}: must be above 0 seconds")
    hours = c.max_hours
    _require(hours is None or 0 < hours < math.inf, f"max_hours={hours}: must be a number of hours above 0")
    _require(
        not (c.init_optimizer and c.init == "scratch"),
        "init_optimizer=true: init=scratch has no optimizer state; name a checkpoint, or leave it out",
    )
    for tokens in c.checkpoint.milestones:
        parse_tokens("checkpoint.milestones", tokens)
    for name in ("max_lr", "min_lr_ratio", "warmup", "replay"):
        _require(math.isfinite(getattr(c, name)), f"{name}={getattr(c, name)}: must be a finite number")
    _require(c.max_lr > 0, f"max_lr={c.max_lr}: must be above 0, for example 6e-4")
    _require(
        0 <= c.min_lr_ratio <= 1,
        f"min_lr_ratio={c.min_lr_ratio}: the minimum LR must lie between 0 and max_lr; give a share in 0..1",
    )
    _require(0 <= c.warmup <= 1, f"warmup={c.warmup}: is a share of the horizon and must lie in 0..1")
    _require(0 <= c.replay < 1, f"replay={c.replay}: is a share of every batch and must lie in 0..1, below 1")
    for name, known in (("precision", PRECISIONS), ("device", DEVICES)):
        if getattr(c, name) not in known:
            raise choice(name, getattr(c, name), known)
    parse_tokens("budget", c.budget)
    if c.horizon is not None:
        parse_tokens("horizon", c.horizon)
    _check_schedule(c)
    _check_numbers(c)
    for side in SIDES:
        source(c.data, side)
    if c.data.train not in SIDES:
        raise choice("data.train", c.data.train, SIDES)
    _require(
        c.replay == 0 or c.data.train == "downstream",
        f"replay={c.replay}: has no meaning with data.train=upstream; leave it out",
    )
    for tracker in c.tracker.names:
        if tracker not in TRACKERS:
            raise choice("tracker.names", tracker, TRACKERS)
    if c.tracker.mode not in ("auto", "online", "offline"):
        raise choice("tracker.mode", c.tracker.mode, ("auto", "online", "offline"))
    return config


def _check_schedule(c: Config) -> None:
    s = c.schedule
    if s.name not in SCHEDULES:
        raise choice("schedule", s.name, SCHEDULES)
    readable = SHAPE_PARAMETERS.get(s.name, ())
    for f in fields(s):
        value = getattr(s, f.name)
        if f.name == "name" or value is None:
            continue
        _require(
            f.name in readable,
            f"schedule.{f.name}={value}: has no effect with schedule={s.name}; leave it out",
        )
        if f.name == "decay_shape":
            if value not in DECAY_SHAPES:
                raise choice("schedule.decay_shape", value, DECAY_SHAPES)
        elif f.name == "alpha":
            _require(math.isfinite(value) and value > 0, f"schedule.alpha={value}: must be above 0")
        else:
            _require(0 < value <= 1, f"schedule.{f.name}={value}: is a share and must lie in 0..1, above 0")
    if s.cooldown_end is not None and s.constant_end is not None:
        _require(
            s.cooldown_end <= s.constant_end,
            f"schedule.cooldown_end={s.cooldown_end}: must not lie after constant_end={s.constant_end}",
        )
    _require(
        s.name != "no_rewarm" or c.warmup == 0,
        f"warmup={c.warmup}: schedule=no_rewarm has no warm-up; use schedule=cosine for one",
    )


def _check_numbers(c: Config) -> None:
    positive = {
        "train.batch_size": c.train.batch_size,
        "train.micro_batch_size": c.train.micro_batch_size,
        "train.context": c.train.context,
        "train.log_every": c.train.log_every,
        "train.max_bad_steps": c.train.max_bad_steps,
        "train.threads": c.train.threads,
        "evaluation.every": c.evaluation.every,
        "evaluation.dense_every": c.evaluation.dense_every,
        "evaluation.batch_size": c.evaluation.batch_size,
        "checkpoint.every": c.checkpoint.every,
        "checkpoint.keep_every": c.checkpoint.keep_every,
        "data.shuffle_window": c.data.shuffle_window,
        "scaler.growth_interval": c.scaler.growth_interval,
        "scaler.hysteresis": c.scaler.hysteresis,
    }
    for name, value in positive.items():
        _require(value is None or value >= 1, f"{name}={value}: must be at least 1")
    _require(c.data.workers >= 0, f"data.workers={c.data.workers}: must not be negative")
    bad, patience = c.data.max_bad_share, c.data.patience
    _require(0 <= bad < 1, f"data.max_bad_share={bad}: is a share and must lie in 0..1, below 1")
    speed = c.train.tokens_per_second
    _require(speed is None or speed > 0, f"train.tokens_per_second={speed}: must be above 0")
    _require(patience >= 0, f"data.patience={patience}: must not be negative")
    _require(c.seed >= 0, f"seed={c.seed}: must not be negative")
    _require(c.checkpoint.keep >= 0, f"checkpoint.keep={c.checkpoint.keep}: must not be negative")
    micro, batch = c.train.micro_batch_size, c.train.batch_size
    _require(
        micro is None or batch % micro == 0,
        f"train.micro_batch_size={micro}: must divide train.batch_size={batch}",
    )
    o = c.optimizer
    for name in ("beta1", "beta2"):
        value = getattr(o, name)
        _require(0 <= value < 1, f"optimizer.{name}={value}: must lie in 0..1, below 1")
    for name in ("eps", "clip"):
        value = getattr(o, name)
        _require(value > 0, f"optimizer.{name}={value}: must be above 0")
    _require(o.weight_decay >= 0, f"optimizer.weight_decay={o.weight_decay}: must not be negative")
    _require(0 <= c.evaluation.dense_until <= 1, "evaluation.dense_until: is a share and must lie in 0..1")
    for tokens in ("validation_tokens", "shard_tokens"):
        parse_tokens(f"data.{tokens}", getattr(c.data, tokens))
    _require(
        c.model.max_context is None or c.train.context <= c.model.max_context,
        f"train.context={c.train.context}: is longer than the model's {c.model.max_context}",
    )


def from_hydra(cfg: DictConfig) -> Config:
    """Return the frozen, checked config of a composed one. Raises `UserError` for what cannot be."""
    known = {f.name for f in fields(Config)}
    for key in map(str, cfg):
        if key not in known:
            raise UserError(f"{key}: unknown key{nearest(key, known)}")
    try:
        result = OmegaConf.to_object(cfg)
    except InterpolationToMissingValueError as error:  # what was asked for follows another value, which is missing
        key = str(error).splitlines()[0].split()[-1]
        raise UserError(f"{key}: needs a value; give {key}=…") from error
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, or to another type
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, Config)
    for f in fields(Config):
        value = getattr(result, f.name)
        # An interpolation can put something else in the place of a group.
        if hasattr(f.default_factory, "__dataclass_fields__") and not is_dataclass(value):
            raise UserError(f"{f.name}={value}: is a group of keys, not a value; give {f.name}.KEY=…")
    for key in _missing(result):
        raise UserError(f"{key}: needs a value; give {key}=…")
    return check(result)


def from_dict(values: dict[str, Any]) -> Config:
    """Return the config that a run folder's `config.yaml` holds."""
    try:
        result = OmegaConf.to_object(OmegaConf.merge(schema(), values))
    except OmegaConfBaseException as error:
        raise UserError(f"config.yaml: {str(error).splitlines()[0]}") from error
    assert isinstance(result, Config)
    return result


def _missing(group: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose value is still to be given."""
    for f in fields(group):  # type: ignore[arg-type]
        value = getattr(group, f.name)
        if is_dataclass(value):
            yield from _missing(value, f"{prefix}{f.name}.")
        elif value == MISSING:
            yield f"{prefix}{f.name}"
