from __future__ import annotations

from pathlib import Path

import numpy as np

from rewarm.report.arms import CURVE_POINTS, Arm, arms_of, load, settings_of, thin
from rewarm.runs.run import open_run
from tests.report.runs import as_the_paper_found, write_run


def test_seeds_are_one_arm_and_other_settings_are_apart(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_run(tmp_path / "a", "cosine_1", seed)
    write_run(tmp_path / "a", "constant")
    write_run(tmp_path / "b", "cosine_1", 0)  # the same run once more
    write_run(tmp_path / "c", "cosine_1", 0, as_the_paper_found, "data=builtin_strong")
    arms = arms_of(load([tmp_path]))
    assert sorted(len(arm.runs) for arm in arms) == [1, 1, 2]
    assert [len(group) for group in settings_of(arms)] == [2, 1]
    both = max(arms, key=lambda arm: len(arm.runs))
    assert [run.seed for run in both.runs] == [0, 1]


def test_an_arm_is_compared_where_all_seeds_were_scored(tmp_path: Path) -> None:
    long, short = write_run(tmp_path, "cosine_1", 0), write_run(tmp_path, "cosine_1", 1, finished=False)
    kept = short.path / "metrics.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:20]))
    (arm,) = arms_of(load([tmp_path]))
    assert isinstance(arm, Arm)
    tokens, losses = arm.grid("upstream")
    assert losses.shape == (2, len(tokens))
    assert tokens[-1] == arm.tokens < open_run(long.path).metrics["tokens"][-1]


def test_thinning_keeps_the_ends_and_the_extremes() -> None:
    tokens = np.arange(10_000.0)
    values = np.sin(tokens / 500)
    values[4321], values[8765] = 9.0, -9.0
    at, kept = thin(tokens, values)
    assert len(at) <= CURVE_POINTS + 2
    assert {0.0, 9999.0, 4321.0, 8765.0} <= set(at.tolist())
    assert kept.max() == 9.0
