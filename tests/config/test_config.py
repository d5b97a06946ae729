from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rewarm.config.compose import register
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.config.shipped import conf_dir
from rewarm.config.values import parse_tokens, value_text
from rewarm.errors import UserError
from rewarm.schedules import SCHEDULES
from rewarm.training.agreement import UNNAMED
from tests.conftest import make_config

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
# What a file cannot know: where the user's own data lies, which model is meant by `hf`, an LR that
# nobody published.
NEEDED = {
    "data=files": ["data.upstream=old.jsonl", "data.downstream=new.jsonl"],
    "model=hf": ["model.id=owner/name", "model.peak_lr=1e-3"],
} | {  # whose makers never said it
    f"model={name}": ["model.peak_lr=1e-3"]
    for name in ("llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "gemma-3-1b", "mistral-7b")
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
    source = (conf_dir().parent / "src" / "rewarm" / "config" / "schema.py").read_text()
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
    with pytest.raises(UserError, match=re.escape(f"budget={value_text(text)}")):
        parse_tokens("budget", text)


IMPOSSIBLE = {
    "max_lr=abc": "max_lr=abc: must be a number from 1e-12 to 1, such as 6e-4",
    "max_lr=-1": "max_lr=-1: must be a number from 1e-12 to 1, such as 6e-4",
    "max_lr=0": "max_lr=0: must be a number from 1e-12 to 1",
    "max_lr=nan": "max_lr=nan: must be a number",
    "max_lr=6e4": "max_lr=60000: must be a number from 1e-12 to 1",
    "max_lr=null": "max_lr=null: must be a number",
    "model.peak_lr=abc": "model.peak_lr=abc: must be a number from 1e-12 to 1",
    "model.peak_lr=-1": "model.peak_lr=-1: must be a number",
    "model.final_lr=-1": "model.final_lr=-1: must be a number from 0 to 1",
    "warmup=2": "warmup=2: must be a number from 0 to 1, a share of the horizon",
    "warmup=-0.1": "warmup=-0.1: must be a number from 0 to 1",
    "min_lr_ratio=1.5": "min_lr_ratio=1.5: must be a number from 0 to 1, the minimum LR as a share of max_lr",
    "replay=1": "replay=1: must be a number from 0 to below 1, a share of every batch",
    "budget=0": "budget=0: must be at least one token",
    "budget=1e308": "budget=1e+308: must be at most 1,000,000,000,000,000 tokens",
    "precision=fp8": "precision=fp8: unknown choice, did you mean 'fp",
    "device=gpu": "device=gpu: unknown choice",
    "seed=-1": "seed=-1: must be a whole number from 0",
    "seed=9223372036854775808": "seed=9223372036854775808: must be a whole number from 0",
    "dry_run=perhaps": "dry_run=perhaps: must be true or false",
    "train=5": "train=5: is a group of keys, not a value; give train.KEY=…",
    "train.batch_size=0": "train.batch_size=0: must be a whole number from 1",
    "train.batch_size=1.5": "train.batch_size=1.5: must be a whole number from 1",
    "train.micro_batch_size=3": "train.micro_batch_size=3: must divide train.batch_size=32",
    "train.context=512": "train.context=512: is longer than the model's 256",
    "train.threads=1e9": "train.threads=1000000000: must be a whole number from 1 to 1,024",
    "train.tokens_per_second=0": "train.tokens_per_second=0: must be a number",
    "model.heads=3": "model.heads=3: must divide model.hidden_size=128",
    "model.hidden_size=33": "model.heads=4: must divide model.hidden_size=33",
    "model.hidden_size=-128": "model.hidden_size=-128: must be a whole number from 1",
    "model.layers=-1": "model.layers=-1: must be a whole number from 1 to 1,000",
    "model.layers=9007199254740993": "model.layers=9007199254740993: must be a whole number from 1 to 1,000",
    "model.rotary_pct=2": "model.rotary_pct=2: must be a number from 0 to 1",
    "model.init=": "model.init=: must be text that is not empty",
    "optimizer.beta2=1": "optimizer.beta2=1: must be a number from 0 to below 1",
    "optimizer.clip=0": "optimizer.clip=0: must be a number from 1e-06 to 1e+06",
    "optimizer.clip=inf": "optimizer.clip=inf: must be a number from 1e-06 to 1e+06",
    "optimizer.clip=1e-308": "optimizer.clip=1e-308: must be a number from 1e-06 to 1e+06",
    "optimizer.eps=1e308": "optimizer.eps=1e+308: must be a number from 1e-20 to 1",
    "optimizer.weight_decay=1000": "optimizer.weight_decay=1000: must be a number from 0 to 10",
    "scaler.init_scale=-4096": "scaler.init_scale=-4096: must be a number from 1e-06 to 1e+12",
    "scaler.init_scale=inf": "scaler.init_scale=inf: must be a number",
    "scaler.min_scale=8192": "scaler.min_scale=8192.0: is above scaler.init_scale=4096.0",
    "schedule.decay_fraction=0.1": "schedule.decay_fraction=0.1: has no effect with schedule=cosine",
    "data.train=sideways": "data.train=sideways: unknown choice",
    "data.validation_tokens=1e308": "data.validation_tokens=1e+308: must be at most",
    "data.upstream=3": "data.upstream=3: must be a path, or a group of keys",
    "+data.upstream.pth=3": "data.upstream.pth: unknown key, did you mean 'path'?",
    "++data.upstream.kind=web": "data.upstream.kind=web: unknown choice (choices: builtin, files, hub, proxy, self)",
    "data.upstream.weights.prose=7": "data.upstream.weights.prose=7: must be a number from 0 to 1",
    "tracker.names=[wandbb]": "tracker.names=wandbb: unknown choice, did you mean 'wandb'",
    "tracker.names=wandb": "tracker.names=wandb: must be a list, such as [wandb]",
    "tracker.entity='../x'": "tracker.entity=../x: must be a name of letters, digits, - and _",
    "tracker.project=''": "tracker.project=: must be a name without",
    "tracker.patience=1e308": "tracker.patience=1e+308: must be a number",
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


def test_a_stop_ends_the_run_on_the_same_curve_and_says_where() -> None:
    whole, part = make_plan(make_config("budget=4.096M")), make_plan(make_config("budget=4.096M", "stop=0.4096M"))
    assert part.schedule == whole.schedule
    assert (whole.steps, part.steps) == (1000, 100)
    assert whole.early_stop() is None
    assert part.early_stop() == (
        "stops after 409,600 of the schedule's 4,096,000 tokens (10%): "
        "the learning rate is 0.000982 there, and would end at 0.0001"
    )
    assert make_plan(make_config("budget=0.4096M", "horizon=4.096M")) == part
    with pytest.raises(UserError, match="stop=5000000: lies after the end of budget=4096000"):
        make_config("budget=4.096M", "stop=5M")
    with pytest.raises(UserError, match="stop=1: is less than one step"):
        make_plan(make_config("stop=1"))


def test_more_steps_than_the_optimizer_can_count_are_refused() -> None:
    with pytest.raises(UserError, match="budget=1000000000000: is 244,140,625 steps of 4,096 tokens, more than"):
        make_plan(make_config("budget=1T"))


@pytest.mark.parametrize(
    ("steps", "every"), [(1, 1), (9, 1), (24, 2), (100, 10), (500, 50), (1000, 50), (10_000, 50)]
)
def test_a_short_run_is_scored_ten_times_too(steps: int, every: int) -> None:
    plan = make_plan(make_config(f"budget={steps * 4096}"))
    assert plan.evaluate_every == every
    assert plan.evaluate_dense_every == min(every, 5)
    assert make_plan(make_config(f"budget={steps * 4096}", "evaluation.every=70")).evaluate_every == 70


def test_evaluation_is_denser_early_and_never_misses_the_turns() -> None:
    plan = make_plan(
        make_config(
            *("warmup=0.026", "evaluation.every=50", "evaluation.dense_every=10", "evaluation.dense_until=0.1")
        )
    )
    evaluated = [step for step in range(plan.steps + 1) if plan.evaluates(step)]
    assert evaluated[:5] == [0, 10, 13, 20, 30]
    assert evaluated[-2:] == [450, 500]
