"""The answer that comes first, and the views that a report has of its arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rewarm.config.schema import Config
from rewarm.report.arms import load
from rewarm.report.findings import Study, studies_of
from rewarm.runs.folder import RunFolder
from rewarm.runs.run import open_run
from tests.report.runs import as_the_paper_found, write_run


def study(folder: Path) -> Study:
    (only,) = studies_of(load([folder]))
    return only


def started_with(run: RunFolder, *argv: str) -> None:
    manifest = open_run(run.path).manifest
    run.write_manifest(replace(manifest, other={"argv": list(argv)}))


def test_one_seed_says_what_it_gains_and_asks_for_more_seeds(tmp_path: Path) -> None:
    for arm in ("cosine_0.5", "cosine_2", "constant"):
        run = write_run(tmp_path, arm)
        started_with(run, "rewarm train", "-m", "experiment=max_lr", "data=ours", f"run_dir={tmp_path}")
    found = study(tmp_path).answer
    summary = open_run(tmp_path / "cosine_0.5,seed=0").summary
    assert summary is not None
    new, old = (100 * np.expm1(summary[s]["final"] - summary[s]["start"]) for s in ("downstream", "upstream"))
    assert found.said[0] == (
        f"cosine_0.5 (max LR 5e-4) has the least sum of both losses: perplexity {new:+.1f} % on the new data, "
        f"{old:+.1f} % on the old."
    )
    assert found.said[1].startswith("cosine_2 (max LR 2e-3) learns the new data best")
    assert "with one seed nobody can say whether that is noise" in " ".join(found.said)
    assert found.command == f"rewarm train -m experiment=max_lr data=ours run_dir={tmp_path} seeds=3"
    assert found.text().splitlines()[0] == "How should a pretrained model be re-warmed?"


def test_seeds_tell_a_lead_from_noise(tmp_path: Path) -> None:
    def noisy(config: Config, t: np.ndarray, lr: np.ndarray, noise: float) -> dict[str, np.ndarray]:
        losses = as_the_paper_found(config, t, lr, noise)
        return losses | {"upstream": losses["upstream"] + (0.5 if config.seed else -0.5) * config.max_lr * 1e3 * t}

    for seed in range(2):
        for arm in ("cosine_0.5", "cosine_1"):
            write_run(tmp_path / "clear", arm, seed)
            write_run(tmp_path / "noisy", arm, seed, noisy)
    clear, blurred = (study(tmp_path / name).answer for name in ("clear", "noisy"))
    assert clear.said[-1].endswith("2 seeds): beyond the noise.")
    assert blurred.said[-1].endswith("2 seeds): within the noise.")
    assert clear.command == f"rewarm forecast {tmp_path / 'clear'}"


def test_a_run_that_was_cut_is_to_go_on(tmp_path: Path) -> None:
    write_run(tmp_path, "cosine_1")
    run = write_run(tmp_path, "cosine_2", finished=False)
    started_with(run, "/usr/bin/rewarm", "train", "arm=cosine_2", "run_dir=with space")
    found = study(tmp_path).answer
    assert found.command == "rewarm train arm=cosine_2 'run_dir=with space'"
    assert found.said[-1].endswith("not finished: 1 of 2 arms.")


def test_an_arm_looks_the_same_in_every_figure_and_a_sweep_stays_together(tmp_path: Path) -> None:
    # 1e-4 is where pre-training ended: not re-warmed, and still one of the three that were asked about.
    for lr in ("1e-4", "6e-4", "2e-3"):
        write_run(tmp_path / lr, "cosine_1", 0, as_the_paper_found, f"max_lr={lr}", f"arm.name=lr-{lr}")
    for arm in ("constant", "warmup_0", "warmup_2"):
        write_run(tmp_path, arm)
    found = study(tmp_path)
    (view,) = [view for view in found.views if view.id == "max-lr"]
    assert [arm.name for arm in view.arms] == ["lr-1e-4", "lr-6e-4", "lr-2e-3", "constant"]
    assert found.charts
    looks = {line.look.name: set() for chart in found.charts for line in chart.lines}
    for chart in found.charts:
        for line in chart.lines:
            looks[line.look.name].add((line.look.color, line.look.dash))
    assert all(len(seen) == 1 for seen in looks.values())
    assert len({next(iter(seen)) for seen in looks.values()}) == len(looks) == 6
