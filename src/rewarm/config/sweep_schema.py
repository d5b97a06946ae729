"""The groups of a config that say what is asked by many runs, how they are started, and where their metrics go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from rewarm.config.values import Choice, Count, Text, Tokens, Within, Words


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics go beside `metrics.jsonl`."""

    names: list[Annotated[str, Choice("wandb", "tensorboard")]] = field(default_factory=list)
    """Trackers to use."""
    project: Annotated[str, Text(r"[^/\\#?%:\0]{1,128}", "a name without / \\ # ? % :")] = "rewarm"
    """W&B project."""
    entity: Annotated[str, Text(r"[\w-]+", "a name of letters, digits, - and _")] | None = None
    """W&B user or team."""
    mode: Annotated[str, Choice("auto", "online", "offline")] = "auto"
    """W&B mode; auto is online with an account, else offline."""
    tags: list[Annotated[str, Text(".{1,64}", "text of 1 to 64 characters")]] = field(default_factory=list)
    """W&B tags."""
    patience: Annotated[float, Within(1e-3, 1e7)] = 30.0
    """Seconds that the end of a run waits for a tracker before it is left behind."""


@dataclass(frozen=True)
class ExperimentConfig:
    """The question that a sweep's arms answer together."""

    name: Words | None = None
    """Name of the experiment."""
    question: str = ""
    """The question, for the report."""
    budget: Tokens | None = None
    """Budget of every arm."""
    short: Tokens | None = None
    """Where arms stop of which the paper shows only the beginning; in proportion to `budget`."""
    stop: Tokens | None = None
    """Where all arms stop; at the end of the budget where not given."""


@dataclass(frozen=True)
class ArmConfig:
    """One run's role in an experiment."""

    name: Words | None = None
    """Name of the arm."""


@dataclass(frozen=True)
class SlurmConfig:
    """What each run of a sweep asks of SLURM; what is not given, `scripts/slurm` and the cluster decide."""

    partition: Words | None = None
    """Partition."""
    account: Words | None = None
    """Account that is charged."""
    gpus: Annotated[int, Within(0, 1024)] | None = None
    """GPUs of a run."""
    cpus: Annotated[int, Within(1, 4096)] | None = None
    """CPU cores of a run."""
    minutes: Count | None = None
    """Time of a job; a run that needs more is queued again and goes on."""
    options: list[Words] = field(default_factory=list)
    """Further options of sbatch, such as '--mem=64G'."""


@dataclass(frozen=True)
class SweepConfig:
    """How the runs of a sweep (`-m`) are started. They are the same runs however that is done."""

    launcher: Annotated[str, Choice("local", "slurm")] = "local"
    """Where they run: on this machine, or as jobs of SLURM."""
    jobs: Annotated[int, Within(1, 10**4)] | None = None
    """Runs at once; not given, one for each CPU core here, and all that SLURM lets run there."""
    share: bool = True
    """Train what several runs begin with once; each is the run that it would be alone, to the last bit."""
    stop: Annotated[str, Choice("none", "forecast")] = "none"
    """Which arms are left early: forecast leaves those that cannot win any more, by what all have shown."""
    weights: list[Annotated[float, Within(0.0, 1e6)]] | None = None
    """With stop=forecast, the weights of upstream and downstream loss in what wins; not given, both losses count."""
    max_forgetting: Annotated[float, Within(0.0, 100.0)] | None = None
    """With stop=forecast, the most that the upstream loss of what wins may rise, in nats."""
    trials: Count | None = None
    """Runs that Optuna chooses among the values, for both final losses; not given, all combinations are run."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass(frozen=True)
class ForkConfig:
    """What is trained once for several runs. A sweep gives these keys to its runs; numbers do not depend on them."""

    run: Words | None = None
    """A run that this one begins as: its newest checkpoint up to which both are the same is taken from there."""
    steps: list[Annotated[int, Within(1)]] = field(default_factory=list)
    """Steps that are saved for runs that begin as this one, until their sweep needs them no more."""
