"""Commands that are printed are the user's own: with their data, start, config folder and run folder."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from rewarm.commands.arms import Swept
from rewarm.commands.begin import begin
from rewarm.commands.merge import merge
from rewarm.config.command_line import parse
from rewarm.config.differences import differing
from rewarm.diagnose.files import look
from rewarm.runs.run import Run, find_runs, open_run
from rewarm.runs.words import experiment_words, sweep_words, words_like
from tests.conftest import SMALL, rewarm

DATA = """\
name: ours
upstream: {kind: files, path: old.txt, validation_share: 0.2}
downstream: {kind: files, path: "new, and more.txt", validation_share: 0.2}
tokenizer: builtin
validation_tokens: 512
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which somebody has swept over two max LRs on data of their own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine/data").mkdir(parents=True)
    (folder / "mine/data/ours.yaml").write_text(DATA)
    for name in ("old.txt", "new, and more.txt"):
        texts = (" ".join(f"{name[:3]}{i * k % 97}" for k in range(40)) for i in range(400))
        (folder / name).write_text("\n\n".join(texts))
    words = ["-m", "--config-dir", "mine", *SMALL, "data=ours", "max_lr=3e-4,1e-3"]
    done = rewarm("train", *words, "run_dir=our runs", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sweep(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Return the two runs of the sweep; the test is where its command was given."""
    monkeypatch.chdir(place)
    return [open_run(path) for path in find_runs([Path("our runs")]) if path.name.endswith("seed=0")]


def printed(text: str, before: str) -> list[str]:
    """Return the words behind `rewarm train` in the line of a text that begins so."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(before)]
    return shlex.split(line.partition("rewarm train ")[2])


def test_what_the_report_prints_goes_on_with_the_sweep(
    sweep: list[Run], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = rewarm("report", "our runs", cwd=place)
    assert said.returncode == 0, said.stderr
    words = printed(said.stdout, "next: ")
    assert "seeds=3" in words
    [line] = [line for line in said.stdout.splitlines() if "rewarm merge" in line]
    merge([*shlex.split(line.partition("rewarm merge ")[2]), "alphas=0.5"])
    assert "alpha=0.5" in capsys.readouterr().out
    done = rewarm("train", *[word.replace("seeds=3", "seeds=2") for word in words], cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is finished already") == 2
    runs = [open_run(path) for path in find_runs([Path("our runs")])]
    assert {run.path.name for run in runs} == {
        f"max_lr={lr},seed={seed}" for lr in ("0.0003", "0.001") for seed in (0, 1)
    }
    assert all(run.config.data == sweep[0].config.data for run in runs)


def test_a_recipe_and_an_experiment_keep_data_start_and_steps(sweep: list[Run]) -> None:
    run = sweep[0]
    asked = begin("train", [*words_like(run), "schedule=wsd", "max_lr=0.002", f"budget={run.config.budget}"])
    assert asked is not None
    assert set(differing(run.config, asked.config)) == {"schedule.name", "max_lr"}
    line = parse(experiment_words(run, "warmup_length"))
    swept = Swept.of(line)
    assert swept.folder == Path("our runs")
    for arm in swept.arms():
        assert (arm.config.data, arm.config.init) == (run.config.data, run.config.init)
        assert arm.config.train == run.config.train
    assert sweep_words([run]) is None
    upstream = replace(run, config=replace(run.config, data=replace(run.config.data, train="upstream")))
    assert experiment_words(upstream, "warmup_length") == experiment_words(run, "warmup_length")


def test_the_run_on_old_data_that_a_diagnosis_asks_for_differs_by_that_alone(sweep: list[Run]) -> None:
    for run in sweep:
        command = look(run).same_data_command
        asked = begin("train", shlex.split(command.removeprefix("rewarm train ")))
        assert asked is not None
        assert set(differing(run.config, asked.config)) == {"data.train"}
        assert asked.config.run_dir == f"our runs/{run.name}-same-data"


def test_without_its_words_a_run_tells_them_by_its_config(sweep: list[Run]) -> None:
    run = sweep[0]
    run.manifest.other["argv"] = []
    asked = begin("train", [*words_like(run), f"max_lr={run.config.max_lr}", f"budget={run.config.budget}"])
    assert asked is not None
    assert not differing(run.config, asked.config)
