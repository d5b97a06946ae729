"""The shipped experiments, and what a sweep does with arms that are done, cut or impossible."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rewarm.commands.arms import Swept, run_name
from rewarm.commands.begin import begin
from rewarm.config.command_line import parse
from rewarm.config.plan import make_plan
from rewarm.config.schema import AnchorConfig, Config, SourceConfig
from rewarm.config.shipped import conf_dir
from rewarm.errors import CheckpointError, UserError
from rewarm.model.init import nearest_by_loss, resolve_init
from rewarm.runs.folder import RunFolder
from rewarm.schedules import lr
from rewarm.storage import exclusive
from tests.conftest import ROOT, SMALL, make_config, rewarm

PAPER = ("warmup_length", "max_lr", "from_scratch", "same_data", "early_checkpoint")
FILES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
EXPERIMENTS = [name for name in FILES if name not in ("decay", "merge")]
"""Those whose runs are arms with a name of their own."""
ARMS = sorted(path.stem for path in (conf_dir() / "arm").glob("*.yaml"))
SCALES = ("local", "paper")


def arms_of(experiment: str) -> list[str]:
    content = yaml.safe_load((conf_dir() / "experiment" / f"{experiment}.yaml").read_text())
    return [arm.strip() for arm in content["hydra"]["sweeper"]["params"]["arm"].split(",")]


def arm(experiment: str, name: str, scale: str) -> Config:
    # The paper's pair of data sets is named on its own, because not every scale's data is the experiment's.
    data = ["data=builtin"] if scale == "paper" else []
    return make_config(f"experiment={experiment}", f"arm={name}", f"scale={scale}", *data)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_arm_of_every_experiment_composes(experiment: str, scale: str) -> None:
    for name in arms_of(experiment):
        config = arm(experiment, name, scale)
        assert (config.experiment.name, config.arm.name) == (experiment, name)
        assert make_plan(config).schedule.total_steps == {"local": 1000, "paper": 131_296}[scale]


# What each arm changes: schedule, max LR as a share of the highest of pre-training, warm-up, and the rest.
RECIPES: dict[str, tuple[str, float, float, dict[str, object]]] = {
    "anchor_kl": ("cosine_neox", 1.0, 0.01, {"anchor": AnchorConfig(kl=1.0)}),
    "anchor_l2": ("cosine_neox", 1.0, 0.01, {"anchor": AnchorConfig(l2=3.0)}),
    "constant": ("constant", 0.1, 0.0, {"min_lr_ratio": 1}),
    "cosine_0.5": ("cosine_neox", 0.5, 0.01, {}),
    "cosine_1": ("cosine_neox", 1.0, 0.01, {}),
    "cosine_2": ("cosine_neox", 2.0, 0.01, {}),
    "cosine_corrected": ("cosine", 1.0, 0.01, {}),
    "early_warmup_0": ("cosine_neox", 1.0, 0.0, {"init": "builtin@loss3.72", "short": True}),
    "early_warmup_1": ("cosine_neox", 1.0, 0.01, {"init": "builtin@loss3.72", "short": True}),
    "infinite_cosine": ("infinite_cosine", 1.0, 0.01, {}),
    "middle_warmup_0": ("cosine_neox", 1.0, 0.0, {"init": "builtin@loss3.5", "short": True}),
    "middle_warmup_1": ("cosine_neox", 1.0, 0.01, {"init": "builtin@loss3.5", "short": True}),
    "no_rewarm": ("no_rewarm", 0.1, 0.0, {"min_lr_ratio": 0.01}),
    "replay_1": ("cosine_neox", 1.0, 0.01, {"replay": 0.01}),
    "replay_25": ("cosine_neox", 1.0, 0.01, {"replay": 0.25}),
    "replay_5": ("cosine_neox", 1.0, 0.01, {"replay": 0.05}),
    "replay_self": ("cosine_neox", 1.0, 0.01, {"replay": 0.25, "replay_source": SourceConfig(kind="self")}),
    "same_constant": ("constant", 0.1, 0.0, {"min_lr_ratio": 1, "train": "upstream", "short": True}),
    "same_cosine_0.5": ("cosine_neox", 0.5, 0.01, {"train": "upstream", "short": True}),
    "same_cosine_1": ("cosine_neox", 1.0, 0.01, {"train": "upstream", "short": True}),
    "same_cosine_2": ("cosine_neox", 2.0, 0.01, {"train": "upstream", "short": True}),
    "scratch": ("cosine_neox", 1.0, 0.01, {"init": "scratch"}),
    "warmup_0": ("cosine_neox", 1.0, 0.0, {"short": True}),
    "warmup_0.5": ("cosine_neox", 1.0, 0.005, {"short": True}),
    "warmup_2": ("cosine_neox", 1.0, 0.02, {"short": True}),
    "wsd": ("wsd", 1.0, 0.01, {}),
}


def test_every_arm_is_its_recipe() -> None:
    found = {}
    for name in ARMS:
        config = make_config(f"arm={name}")
        usual = {"min_lr_ratio": 0.1, "init": "builtin", "replay": 0, "train": "downstream", "short": False}
        usual |= {"anchor": AnchorConfig(), "replay_source": None}
        rest = {
            "min_lr_ratio": config.min_lr_ratio,
            "init": config.init,
            "replay": config.replay,
            "replay_source": config.replay_source,
            "anchor": config.anchor,
            "train": config.data.train,
            "short": (config.stop or config.budget) < config.budget,
        }
        share = round(config.max_lr / config.model.peak_lr, 6)
        found[name] = (
            config.schedule.name,
            share,
            config.warmup,
            {k: v for k, v in rest.items() if v != usual[k]},
        )
        assert config.budget == 4_096_000
        assert config.stop in (None, 2_048_000)
    assert found == RECIPES


@pytest.mark.parametrize("budget", [400_000, 4_096_000])
@pytest.mark.parametrize("experiment", PAPER)
def test_a_smaller_experiment_is_the_same_one_over_fewer_tokens(experiment: str, budget: int) -> None:
    stops_early = {"warmup_length", "same_data", "early_checkpoint"}
    for name in arms_of(experiment):
        config = make_config(f"experiment={experiment}", f"arm={name}", f"budget={budget}")
        plan = make_plan(config)
        assert plan.schedule.total_steps == round(budget / 4096)
        assert plan.steps == (round(budget / 2 / 4096) if experiment in stops_early else plan.schedule.total_steps)
        said = plan.early_stop()
        assert (said is not None) == (experiment in stops_early)
        assert said is None or "(50%)" in said


def test_all_is_the_union_of_the_papers_five() -> None:
    assert set(arms_of("all")) == {name for experiment in PAPER for name in arms_of(experiment)}
    assert len(arms_of("all")) == len(set(arms_of("all")))


def test_every_arm_belongs_to_an_experiment() -> None:
    assert set(ARMS) == {name for experiment in EXPERIMENTS for name in arms_of(experiment)}


@pytest.mark.parametrize("scale", SCALES)
def test_learning_rates_stand_in_the_papers_ratios(scale: str) -> None:
    ratios = {
        name: (config := arm("max_lr", name, scale)).max_lr / config.model.peak_lr for name in arms_of("max_lr")
    }
    assert ratios == pytest.approx({"constant": 0.1, "cosine_0.5": 0.5, "cosine_1": 1.0, "cosine_2": 2.0})


@pytest.mark.parametrize("scale", SCALES)
def test_the_shortest_warm_up_has_five_steps_or_more(scale: str) -> None:
    warmups = {name: make_plan(arm("warmup_length", name, scale)).schedule for name in arms_of("warmup_length")}
    assert warmups["warmup_0.5"].warmup_steps >= 5
    shares = {"warmup_0": 0.0, "warmup_0.5": 0.005, "cosine_1": 0.01, "warmup_2": 0.02}
    for name, spec in warmups.items():
        assert spec.warmup_steps == round(shares[name] * spec.total_steps)


def test_the_papers_scale_is_the_papers_run() -> None:
    config = arm("max_lr", "cosine_2", "paper")
    plan = make_plan(config)
    assert lr(plan.schedule, 1313) == pytest.approx(6e-4)
    assert lr(plan.schedule, 105_800) == pytest.approx(6e-5), "its cosine met the floor at 239B tokens"
    assert make_plan(arm("warmup_length", "warmup_2", "paper")).steps == round(50e9 / 2_260_992)
    assert config.init == "EleutherAI/pythia-410m@step143000"
    earlier = [arm("early_checkpoint", f"{name}_warmup_1", "paper").init for name in ("early", "middle")]
    assert earlier == ["EleutherAI/pythia-410m@step10000", "EleutherAI/pythia-410m@step27000"]


def test_an_early_checkpoint_is_chosen_by_its_loss(tmp_path: Path) -> None:
    steps = {step: tmp_path / str(step) for step in (100, 200, 300)}
    assert nearest_by_loss("x", 3.1, {100: 4.0, 200: 3.2, 300: 2.0}, steps) == 200
    assert nearest_by_loss("x", 3.1, {100: 4.0, 250: 3.1}, steps) == 100, "250 has no checkpoint"
    with pytest.raises(CheckpointError, match="choose one by its step"):
        nearest_by_loss("x", 3.1, {}, steps)


def test_an_early_checkpoint_of_a_run_is_chosen_by_its_metrics(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step, loss in ((5, 4.0), (10, 3.0)):
        run.append_metrics({"step": step, "tokens": 128 * step, "upstream/loss": loss})
        folder = run.checkpoints / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert resolve_init(f"{tmp_path}@loss3.9").folder == run.checkpoints / "step-5"


def swept(*arguments: str) -> Swept:
    return Swept.of(parse(["-m", *arguments]))


def test_seeds_become_a_sweep_and_the_same_folder_takes_more_of_them() -> None:
    once, more = swept("experiment=max_lr"), swept("experiment=max_lr", "seeds=3")
    assert len(list(once.combinations())) == 4
    assert len(list(more.combinations())) == 12
    assert once.folder == more.folder
    assert once.folder.name.startswith("max_lr-")
    assert once.folder != swept("experiment=max_lr", "budget=1M").folder


def test_arms_are_named_and_checked_at_the_door() -> None:
    asked = swept("max_lr=1e-3,1e-4", "+data.upstream.path=a,'b=c'", "seed=1", "run_dir=x")
    names = [arm.name for arm in asked.arms()]
    assert names == [
        f"+data.upstream.path={path},max_lr={lr},seed=1" for lr in ("0.001", "0.0001") for path in ("a", "'b=c'")
    ]
    with pytest.raises(UserError, match="warmup=7"):
        begin("train", ["-m", "warmup=0,7"])


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["seeds=3"], "add -m"),
        (["experiment=max_lr"], "add -m"),
        (["-m", "seeds=0"], "at least 1"),
        (["-m", "seeds=two"], "at least 1"),
        (["-m", "seeds=2", "seed=1"], "give one of them"),
        (["-m", "experiment=max_lr,same_data"], "experiment=all"),
        (["-m", "max_lr=interval(1e-4,1e-3)"], "sweep.trials"),
        (["-m", "hydra/launcher=joblib"], "sweep.launcher=local"),
        (["-m", "sweep.launcher=slurm", "seed=0,1", "sweep.slurm.gpu=1"], "sweep.slurm.gpus"),
    ],
)
def test_half_a_sweep_is_refused(arguments: list[str], advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        begin("train", arguments)


def test_an_arm_alone_is_a_run() -> None:
    asked = begin("train", ["experiment=max_lr", "arm=constant"])
    assert asked is not None
    assert asked.config.arm.name == "constant"


def test_runs_are_named_by_what_differs() -> None:
    assert run_name(["arm=constant"], 0) == "constant,seed=0"
    assert run_name(["init=/a/b", "warmup=0.01"], 2) == "init=-a-b,warmup=0.01,seed=2"
    assert run_name([], 1) == "seed=1"


USER_EXPERIMENT = """\
# @package _global_
experiment:
  name: ours
  question: Does it work?
hydra:
  sweeper:
    params:
      warmup: 0,0.2
"""


def test_a_users_experiment_runs_side_by_side_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "ours.yaml").write_text(USER_EXPERIMENT)
    arguments = ("train", "-m", "--config-dir", "mine", *SMALL, "experiment=ours", "init=scratch", "run_dir=sweep")
    first = rewarm(*arguments, "seeds=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    names = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    assert names == {"warmup=0,seed=0", "warmup=0.2,seed=0"}
    assert "next: rewarm report sweep" in first.stdout
    written = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("metrics.jsonl")}
    # One arm's end is taken back; the other stays done.
    (tmp_path / "sweep" / "warmup=0,seed=0" / "summary.json").unlink()
    again = rewarm(*arguments, "seeds=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "warmup=0.2,seed=0: is finished already" in again.stderr
    assert (tmp_path / "sweep" / "warmup=0,seed=0" / "summary.json").is_file()
    assert {path: path.read_bytes() for path in written} == written, "nothing was trained again"


def test_a_failed_arm_stops_no_other_and_shows_in_the_exit_code(tmp_path: Path) -> None:
    done = rewarm("train", "-m", *SMALL, "init=missing,scratch", "run_dir=sweep", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert json.loads((tmp_path / "sweep" / "init=scratch,seed=0" / "summary.json").read_text())["steps"] == 10
    assert "init=missing,seed=0: init=missing: no such checkpoint" in done.stderr
    assert "1 of 2 runs did not finish" in done.stderr
    assert "did not finish" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_asked_to_stop_saves_its_runs_and_starts_no_more(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "rewarm", "train", "-m", *SMALL, "budget=1M", "init=scratch", "seed=0,1,2,3"]
    command += ["run_dir=sweep", "sweep.jobs=2"]
    together = 2
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        errors = ""
        while len(set(re.findall(r"^(seed=\d): \S+ tokens: loss", errors, re.MULTILINE))) < together:
            line = process.stderr.readline()
            assert line, errors
            errors += line
        process.send_signal(number)
        errors += process.stderr.read()
    begun = [path.parent for path in tmp_path.glob("sweep/*/config.yaml")]
    assert len(begun) == together
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert errors.count("SIGTERM: saved at step") >= together
    for run in begun:  # where the sweep was killed, they see that it is gone, save and leave
        with exclusive(run / ".lock", wait=True):
            assert list(run.glob("checkpoints/step-*"))
    assert not list(tmp_path.glob("sweep/*/summary.json"))
