from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rewarm.errors import DataError, UserError
from rewarm.report.records import CURVE_POINTS, Arm, arms_of, find_runs, load, read_columns, settings_of, thin
from rewarm.rundir import RunFolder
from tests.report.runs import as_the_paper_found, write_run


def test_columns_are_what_the_run_folder_reads(tmp_path: Path) -> None:
    run = write_run(tmp_path, "cosine_1")
    rows = run.read_metrics()
    columns = read_columns(run.path / "metrics.jsonl")
    for name, values in columns.items():
        np.testing.assert_array_equal(values, [row.get(name, np.nan) for row in rows])


def test_broken_lines_and_repeated_steps_read_as_the_run_folder_reads_them(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": 0, "tokens": 0, "upstream/loss": 2.0}),
        json.dumps({"step": 10, "tokens": 100, "upstream/loss": None, "lr": 1e-3}),
        '{"step": 20, "tok',
        json.dumps({"step": 10, "tokens": 100, "upstream/loss": 2.5}),
        "[1, 2]",
        json.dumps({"step": 5, "tokens": 50, "upstream/loss": 2.2}),
    ]
    for content in ("\n".join(lines) + "\n", "\n".join(lines[:2] + lines[3:4] + lines[5:]) + "\n"):
        (tmp_path / "metrics.jsonl").write_text(content)
        columns = read_columns(tmp_path / "metrics.jsonl")
        assert columns["step"].tolist() == [0, 5, 10]
        assert columns["upstream/loss"].tolist() == [2.0, 2.2, 2.5]
        assert [row["step"] for row in RunFolder(tmp_path).read_metrics()] == [0, 5, 10]


def test_no_metrics_is_no_curve(tmp_path: Path) -> None:
    assert not read_columns(tmp_path / "metrics.jsonl")["step"].size
    (tmp_path / "metrics.jsonl").write_text("\n")
    assert not read_columns(tmp_path / "metrics.jsonl")["step"].size


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
    assert tokens[-1] == arm.tokens < long.read_metrics()[-1]["tokens"]


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "missing"])
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])
    write_run(tmp_path, "constant").path.joinpath("config.yaml").write_text("a: 1\n")
    with pytest.raises(DataError, match="is not the config of a run"):
        load([tmp_path])


def test_thinning_keeps_the_ends_and_the_extremes() -> None:
    tokens = np.arange(10_000.0)
    values = np.sin(tokens / 500)
    values[4321], values[8765] = 9.0, -9.0
    at, kept = thin(tokens, values)
    assert len(at) <= CURVE_POINTS + 2
    assert {0.0, 9999.0, 4321.0, 8765.0} <= set(at.tolist())
    assert kept.max() == 9.0
