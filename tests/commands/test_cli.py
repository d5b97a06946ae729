from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from rewarm import __version__
from rewarm.commands.usage import USAGE
from rewarm.config.compose import compose_config
from rewarm.config.differences import flat
from rewarm.config.values import parse_tokens
from tests.conftest import ROOT, SMALL, rewarm

WRONG = {
    ("trian",): "rewarm: trian: unknown command, did you mean 'train'?",
    ("train", "max_lrr=1"): "rewarm: max_lrr: unknown key, did you mean 'max_lr'?",
    ("train", "schedule=cosin"): "rewarm: schedule=cosin: unknown choice, did you mean 'cosine'?",
    ("train", "max_lr=abc"): "rewarm: max_lr=abc: must be a number from 1e-12 to 1, such as 6e-4",
    ("train", "schedule.alhpa=1"): "rewarm: schedule.alhpa: unknown key, did you mean 'schedule.alpha'?",
    ("train", "+foo=1"): "rewarm: foo: unknown key",
    (
        "train",
        "data.upstream.path=x",
    ): "rewarm: data.upstream.path: is not among the keys that data=… gives; add it with +",
    ("train", "~max_lr"): "rewarm: max_lr: needs a value",
    ("train", "max_lr=[1"): "rewarm: max_lr=[1: cannot be read as key=value",
    ("train", "--multi"): "rewarm: --multi: unknown option, did you mean '--multirun'?",
    ("train", "warmup=7"): "rewarm: warmup=7: must be a number from 0 to 1, a share of the horizon",
    ("train", "init=nowhere"): "rewarm: init=nowhere: no such checkpoint",
    ("train", "run_dir=/proc/nowhere", "init=scratch"): "rewarm: run_dir=/proc/nowhere: cannot be made",
    ("schedule", "budget=1"): "rewarm: budget=1: is less than one step",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_mistake_is_answered_in_one_line_with_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = rewarm(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(WRONG[arguments])
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from rewarm.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'wandb', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["train", "max_lr=-1"], ["train", "schedule=cosin"]):
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            check=True,
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )


def test_version_and_help() -> None:
    assert rewarm("--version").stdout == f"rewarm {__version__}\n"
    assert "rewarm train" in rewarm("--help").stdout


def test_schedule_tabulates_every_step_and_draws(tmp_path: Path) -> None:
    done = rewarm("schedule", "schedule=wsd", "budget=409600", "run_dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "schedule.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 101
    assert (rows[50]["step"], rows[50]["tokens"], float(rows[50]["lr"])) == ("50", "204800", 1e-3)
    assert float(rows[-1]["lr"]) == pytest.approx(1e-4)
    assert (tmp_path / "out" / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert "decay start" in done.stdout


def test_a_users_own_config_folder_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "short.yaml").write_text("name: wsd\ndecay_fraction: 0.5\n")
    done = rewarm("schedule", "--config-dir", "mine", "schedule=short", "budget=409600", "run_dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decay start" in done.stdout
    with (tmp_path / "out" / "schedule.csv").open() as file:
        assert float(list(csv.DictReader(file))[75]["lr"]) == pytest.approx(0.55e-3)


def test_a_sweep_differs_only_in_what_is_swept(tmp_path: Path) -> None:
    done = rewarm("train", "-m", *SMALL, "init=scratch", "warmup=0,0.5", "run_dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in tmp_path.glob("sweep/**/config.yaml"))
    assert len(runs) == 2
    texts = [run.joinpath("config.yaml").read_text().splitlines() for run in runs]
    differing = {line.split(":")[0] for pair in zip(*texts, strict=True) for line in pair if pair[0] != pair[1]}
    assert differing == {"warmup", "run_dir"}
    first_rows = [run.joinpath("metrics.jsonl").read_text().splitlines()[0] for run in runs]
    assert first_rows[0] == first_rows[1], "both start from the same weights and are scored on the same text"


def test_the_defaults_that_help_says_are_those_of_a_run() -> None:
    config = flat(asdict(compose_config()))
    config |= {group: config[f"{group}.name"] for group in ("schedule", "model", "data")}
    said = USAGE["train"].partition("at scale=local:")[2].partition("run_dir=")[0]
    told = dict(re.findall(r"(?<=  )(\S+)=([^\s|…]+)", said))
    del told["scale"]
    assert len(told) == 11
    for key, value in told.items():
        was = "null" if config[key] is None else config[key]
        assert was == (parse_tokens(key, value) if key == "budget" else type(was)(value)), key
