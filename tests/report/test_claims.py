"""Each claim is judged both ways, and not at all where there is nothing to judge by."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from rewarm.config.schema import Config
from rewarm.report.arms import arms_of, load
from rewarm.report.claims import Test as Measured
from rewarm.report.claims import Verdict, judge
from tests.report.runs import Losses, as_the_paper_found, write_all, write_run


def verdicts(folder: Path) -> dict[int, Verdict]:
    return {verdict.number: verdict for verdict in judge(arms_of(load([folder])))}


def test_runs_as_the_papers_support_all_its_claims(reported: Path) -> None:
    found = verdicts(reported)
    assert {number: verdict.verdict for number, verdict in found.items()} == dict.fromkeys(range(1, 7), "supported")
    for verdict in found.values():
        assert verdict.tests
        assert verdict.runs
        assert all(test.holds for test in verdict.tests)
        assert verdict.reason == ""


def changed(change: object) -> Losses:
    def losses(config: Config, t: np.ndarray, lr: np.ndarray, noise: float) -> dict[str, np.ndarray]:
        return change(config, t, as_the_paper_found(config, t, lr, noise))

    return losses


def _add(side: str, amount: object) -> Losses:
    def change(config: Config, t: np.ndarray, losses: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return losses | {side: losses[side] + amount(config) * np.minimum(t / 0.01, 1.0)}

    return changed(change)


def _ratio(config: Config) -> float:
    return config.max_lr / config.model.peak_lr


CONTRARY = {
    1: (("warmup_0", "warmup_0.5", "cosine_1", "warmup_2"), _add("downstream", lambda c: 5 * c.warmup)),
    2: (("cosine_0.5", "cosine_1", "cosine_2"), _add("downstream", lambda c: 0.5 * _ratio(c))),
    3: (("constant", "cosine_1"), _add("downstream", lambda c: -0.5 if _ratio(c) < 0.2 else 0.0)),
    4: (("constant", "cosine_1", "scratch"), _add("downstream", lambda c: -0.5 if c.init == "scratch" else 0.0)),
    5: (("same_cosine_1", "same_cosine_2"), _add("upstream", lambda _: -0.2)),
    6: (("early_warmup_1", "cosine_1"), _add("downstream", lambda c: -0.5 if c.init in c.model.earlier else 0.0)),
}


@pytest.mark.parametrize("number", CONTRARY)
def test_runs_that_say_the_opposite_contradict_the_claim(tmp_path: Path, number: int) -> None:
    arms, losses = CONTRARY[number]
    for arm in arms:
        for seed in range(2):
            write_run(tmp_path, arm, seed, losses)
    verdict = verdicts(tmp_path)[number]
    assert verdict.verdict == "contradicted", verdict.tests
    assert {run.split(",")[0] for run in verdict.runs} == set(arms)


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    for verdict in verdicts(write_all(tmp_path, seeds=1)).values():
        assert verdict.verdict == "undecided"
        assert verdict.tests
        assert verdict.reason == "one seed has no spread to judge by"
        assert verdict.command.startswith("rewarm train -m ")
        assert verdict.command.endswith("seeds=3")


def test_missing_arms_decide_nothing_and_are_named(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "cosine_1", seed)
    found = verdicts(tmp_path)
    assert {verdict.verdict for verdict in found.values()} == {"undecided"}
    assert "an arm from scratch" in found[4].reason
    assert "an arm without warm-up" in found[1].reason
    assert "data.train=upstream" in found[5].reason


def test_a_spread_over_the_threshold_decides_nothing(tmp_path: Path) -> None:
    def noisy(config: Config, t: np.ndarray, lr: np.ndarray, noise: float) -> dict[str, np.ndarray]:
        losses = as_the_paper_found(config, t, lr, noise)
        sign = 1 if config.seed else -1
        return losses | {"downstream": losses["downstream"] + sign * _ratio(config)}

    for arm in ("cosine_0.5", "cosine_2"):
        for seed in range(2):
            write_run(tmp_path, arm, seed, noisy)
    verdict = verdicts(tmp_path)[2]
    assert (verdict.verdict, verdict.reason) == ("undecided", "the spread over seeds reaches over the threshold")


def test_names_of_arms_do_not_matter(reported: Path, tmp_path: Path) -> None:
    for i, run in enumerate(sorted(reported.glob("*seed=*"))):
        target = tmp_path / f"run-{i}"
        target.mkdir()
        for file in run.iterdir():
            if file.is_file():
                text = file.read_text()
                text = re.sub(r"(?m)^(arm:\n  name): .*$", r"\1: null", text)
                (target / file.name).write_text(text)
    assert {v.verdict for v in verdicts(tmp_path).values()} == {"supported"}


def test_the_interval_is_students() -> None:
    test = Measured("", (0.1, 0.2, 0.3), 0.0)
    low, high = test.interval
    # By hand: sd 0.1, n 3, t(0.975, 2) = 4.3027, half width 0.2484.
    assert (low, high) == (pytest.approx(-0.0484, abs=1e-4), pytest.approx(0.4484, abs=1e-4))
    assert test.holds is None
    assert Measured("", (0.1, 0.2, 0.3), -0.1).holds is True
    assert Measured("", (0.1, 0.2, 0.3), -0.1, below=True).holds is False
    assert Measured("", (0.1,), 0.0).holds is None
