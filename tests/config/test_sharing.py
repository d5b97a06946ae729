"""Which runs begin alike, against a comparison of every update of every two."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from rewarm.config.plan import Plan, make_plan
from rewarm.config.schema import Config
from rewarm.config.sharing import Beginning, beginnings, differing_keys
from rewarm.schedules import lr
from tests.conftest import make_config

STEP = 4096


def arms(*overrides: str) -> list[tuple[Config, Plan]]:
    configs = [make_config(*o.split()) for o in overrides]
    return [(config, make_plan(config)) for config in configs]


def steps_of(found: list[Beginning | None]) -> list[tuple[int, int] | None]:
    return [b and (b.of, b.steps) for b in found]


def test_decays_of_one_trunk_are_forked_where_each_leaves_it() -> None:
    found = beginnings(
        arms(*(f"schedule=wsd schedule.decay_fraction={share} budget={500 * STEP}" for share in (0.5, 0.2, 0.1)))
    )
    trunk = found.index(None)
    shared = sorted(b.steps for b in found if b)
    # The first update of a decay is the first whose LR differs; the decay of 10 % leaves after 450 updates.
    assert shared == [250, 400]
    assert all(b is None or b.of != number for number, b in enumerate(found))
    assert trunk in (0, 1, 2)


def _alike(one: Plan, other: Plan) -> int:
    """Return the updates that two plans share, one after the other."""
    for step in range(1, min(one.steps, other.steps) + 1):
        if (lr(one.schedule, step), one.logs(step), one.evaluates(step)) != (
            lr(other.schedule, step),
            other.logs(step),
            other.evaluates(step),
        ):
            return step - 1
    return min(one.steps, other.steps)


def test_the_forest_trains_what_a_comparison_of_all_pairs_says() -> None:
    """One by one in any order, each run shares its longest beginning with one before it: the sum is the same."""
    rng = random.Random(3)
    given = []
    for _ in range(14):
        name = rng.choice(["wsd", "constant", "cosine", "linear"])
        shape = f"schedule.decay_fraction={rng.choice([0.1, 0.3, 0.5])}" if name == "wsd" else ""
        given.append(
            f"schedule={name} {shape} max_lr={rng.choice(['1e-3', '2e-3'])} warmup={rng.choice([0, 0.1])} "
            f"budget={rng.choice([40, 80]) * STEP} seed={rng.choice([0, 1])}"
        )
    runs = arms(*given)
    found = beginnings(runs)
    best = 0
    for number, (config, plan) in enumerate(runs):
        best += max(
            (_alike(plan, other) for c, other in runs[:number] if not differing_keys(config, c)),
            default=0,
        )
    assert sum(b.steps for b in found if b) == best > 0
    for number, beginning in enumerate(found):
        if beginning:
            config, plan = runs[number]
            other_config, other = runs[beginning.of]
            assert not differing_keys(config, other_config)
            assert beginning.steps == _alike(plan, other)
    ahead, left = set(), set(range(len(runs)))
    while left:  # no circle: each comes after the one that it begins as
        ready = {n for n in left if found[n] is None or found[n].of in ahead}  # type: ignore[union-attr]
        assert ready
        ahead |= ready
        left -= ready


@pytest.mark.parametrize(
    "key", ["seed=1", "replay=0.1", "train.batch_size=16", "optimizer.clip=2", "data.train=upstream", "init=scratch"]
)
def test_what_acts_on_an_update_forbids_sharing_and_is_named(key: str) -> None:
    (one, plan), (other, changed) = arms("schedule=constant", f"schedule=constant {key}")
    assert beginnings([(one, plan), (other, changed)]) == [None, None]
    assert key.split("=", maxsplit=1)[0] in differing_keys(one, other)


def test_names_folders_trackers_and_retention_do_not_count() -> None:
    runs = arms(
        "schedule=constant",
        "schedule=constant arm.name=x run_dir=elsewhere tracker=none checkpoint.keep=7 device=cpu",
    )
    plan: Any = runs[0][1]
    assert steps_of(beginnings(runs)) == [None, (0, plan.steps)]
    assert beginnings(runs, beyond=[True, False]) == [None, None]


def test_a_run_within_anothers_warmup_and_a_longer_one_share_what_they_can() -> None:
    budget = 100 * STEP
    runs = arms(
        f"schedule=constant budget={budget} warmup=0.5 evaluation.every=1 evaluation.dense_until=0",
        f"schedule=constant budget={budget} warmup=0.5 stop={30 * STEP} evaluation.every=1 evaluation.dense_until=0",
    )
    curves = [np.array([lr(plan.schedule, s) for s in range(1, 31)]) for _, plan in runs]
    assert np.array_equal(*curves)
    assert {b.steps for b in beginnings(runs) if b} == {30}


def test_beginnings_of_many_runs_have_no_run_of_another_seed() -> None:
    runs = arms(*(f"schedule=wsd schedule.decay_fraction=0.{i} seed={s}" for i in (1, 2, 3) for s in (0, 1)))
    for number, beginning in enumerate(beginnings(runs)):
        assert beginning is None or runs[beginning.of][0].seed == runs[number][0].seed
