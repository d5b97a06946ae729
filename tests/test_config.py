from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rewarm.checks import parse_tokens
from rewarm.compose import register
from rewarm.config import Config, conf_dir
from rewarm.errors import UserError
from rewarm.plan import make_plan
from rewarm.schedules import SCHEDULES
from rewarm.training.agreement import UNNAMED
from tests.conftest import make_config

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
# What a file cannot know: where the user's own data lies, and which model is meant by `hf`.
NEEDED = {
    "data=files": ["data.upstream=old.jsonl", "data.downstream=new.jsonl"],
    "model=hf": ["model.id=owner/name", "model.peak_lr=1e-3"],
}


@pytest.mark.parametrize(
    "choice",
    [f"{group}={path.stem}" for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))],
)
def test_every_shipped_config_composes_and_passes_the_checks(choice: str) -> None:
    config = make_config(choice, *NEEDED.get(choice, []))
    assert make_plan(config).steps > 0


def test_runs_begun_in_the_same_second_have_folders_of_their_own() -> None:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        folders = [compose("config").run_dir for _ in range(3)]
    assert len(set(folders)) == 3
    assert sorted(folders) == folders, "listed by name they stand in the order of their beginning"
    assert all(UNNAMED.fullmatch(folder) for folder in folders), (
        "where several processes each make up a name, one holds"
    )


def test_every_schedule_has_a_config_of_its_name() -> None:
    assert {path.stem for path in (conf_dir() / "schedule").glob("*.yaml")} == set(SCHEDULES)


def test_every_key_is_explained_where_it_is_declared() -> None:
    source = (conf_dir().parent / "src" / "rewarm" / "config.py").read_text()
    for f in fields(Config):
        if f.name.islower() and not hasattr(f.default_factory, "__dataclass_fields__"):
            assert re.search(rf'^    {f.name}: [^\n]+\n    """', source, re.MULTILINE), f.name


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("50M", 50_000_000),
        ("1.5B", 1_500_000_000),
        ("2e9", 2_000_000_000),
        (2e9, 2_000_000_000),
        ("296.86B", 296_860_000_000),
        ("50_000", 50_000),
        ("3k", 3_000),
        ("1T", 10**12),
        (4096, 4096),
        ("  7m ", 7_000_000),
    ],
)
def test_quantities(text: object, tokens: int) -> None:
    assert parse_tokens("budget", text) == tokens


@pytest.mark.parametrize("text", ["", "abc", "-5", "0", "0.2", "1e999", "5X", None, True, [1], "nan", "inf", "1.5.2"])
def test_what_is_not_a_quantity_is_refused_with_its_value(text: object) -> None:
    with pytest.raises(UserError, match=re.escape(f"budget={text}")):
        parse_tokens("budget", text)


IMPOSSIBLE = {
    "max_lr=-1": "max_lr=-1.0: must be above 0",
    "max_lr=0": "max_lr=0.0: must be above 0",
    "max_lr=nan": "max_lr=nan: must be a finite number",
    "warmup=2": "warmup=2.0: is a share of the horizon",
    "warmup=-0.1": "warmup=-0.1: is a share of the horizon",
    "min_lr_ratio=1.5": "min_lr_ratio=1.5: the minimum LR must lie between 0 and max_lr",
    "replay=1": "replay=1.0: is a share of every batch",
    "budget=0": "budget=0: must be at least one token",
    "precision=fp8": "precision=fp8: unknown choice, did you mean 'fp",
    "device=gpu": "device=gpu: unknown choice",
    "seed=-1": "seed=-1: must not be negative",
    "train.batch_size=0": "train.batch_size=0: must be at least 1",
    "train.micro_batch_size=3": "train.micro_batch_size=3: must divide train.batch_size=32",
    "train.context=512": "train.context=512: is longer than the model's 256",
    "optimizer.beta2=1": "optimizer.beta2=1.0: must lie in 0..1",
    "optimizer.clip=0": "optimizer.clip=0.0: must be above 0",
    "schedule.decay_fraction=0.1": "schedule.decay_fraction=0.1: has no effect with schedule=cosine",
    "data.train=sideways": "data.train=sideways: unknown choice",
    "tracker.names=[wandbb]": "tracker.names=wandbb: unknown choice, did you mean 'wandb'",
    "data.upstream=3": "data.upstream=3: must be a path or a source",
}


@pytest.mark.parametrize("override", IMPOSSIBLE)
def test_impossible_values_are_refused_with_the_value_and_the_fix(override: str) -> None:
    with pytest.raises(UserError) as error:
        make_config(override)
    assert str(error.value).startswith(IMPOSSIBLE[override])
    assert "\n" not in str(error.value)


def test_no_rewarm_refuses_a_warm_up() -> None:
    with pytest.raises(UserError, match="schedule=no_rewarm has no warm-up"):
        make_config("schedule=no_rewarm", "warmup=0.01")


def test_no_rewarm_starts_where_pretraining_ended() -> None:
    config = make_config("schedule=no_rewarm")
    assert (config.max_lr, config.min_lr_ratio, config.warmup) == (config.model.final_lr, 0.01, 0.0)


def test_a_budget_under_one_step_is_refused() -> None:
    with pytest.raises(UserError, match="budget=100: is less than one step of 4,096 tokens"):
        make_plan(make_config("budget=100"))


def test_the_budget_may_stop_short_of_the_horizon_on_the_same_curve() -> None:
    whole = make_plan(make_config("budget=300M", "horizon=300M"))
    part = make_plan(make_config("budget=50M", "horizon=300M"))
    assert part.schedule == whole.schedule
    assert part.steps < whole.steps


def test_evaluation_is_denser_early_and_never_misses_the_turns() -> None:
    plan = make_plan(
        make_config(
            *("warmup=0.026", "evaluation.every=50", "evaluation.dense_every=10", "evaluation.dense_until=0.1")
        )
    )
    evaluated = [step for step in range(plan.steps + 1) if plan.evaluates(step)]
    assert evaluated[:5] == [0, 10, 13, 20, 30]
    assert evaluated[-2:] == [450, 500]
