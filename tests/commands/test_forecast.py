"""The verb, on run folders as training leaves them and on files as other trainers do."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewarm.commands.forecast import forecast, of_one_remedy, output_folder
from rewarm.commands.report import report as make_report
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.forecast.curves import Curve, Trajectory, curve_of
from rewarm.forecast.features import units_of
from rewarm.forecast.options import parse
from rewarm.runs.folder import RunFolder
from rewarm.runs.run import find_runs, open_run
from rewarm.training.run import run
from tests.conftest import make_config, rewarm
from tests.forecast.synthetic import arms, curve, losses, trajectory

TINY = ("train.batch_size=4", "train.context=32", "budget=64000", "tracker=none", "schedule=cosine")
ARMS = {
    "low": ("max_lr=3e-4",),
    "high": ("max_lr=1e-3",),
    "constant": ("schedule=constant", "max_lr=1e-4", "warmup=0"),
    "wsd": ("schedule=wsd", "max_lr=6e-4"),
}


def read_run(folder: Path) -> Curve | None:
    return curve_of(open_run(folder))


def _write_run(folder: Path, config: Config, seed: int = 0, until: int = 500) -> Trajectory:
    """Write a run folder whose losses follow a known law, with noise; return what the forecast makes of it."""
    run_folder = RunFolder(folder)
    run_folder.create()
    run_folder.write_config(config)
    for step in range(4):
        run_folder.append_metrics({"step": step, "tokens": step * 128, "upstream/loss": 1.0})
    read = read_run(folder)
    assert read is not None
    (folder / "metrics.jsonl").unlink()
    steps = np.unique(np.concatenate([np.arange(0, 40, 4), np.arange(0, until + 1, 20)]))
    units = units_of([Trajectory(np.full(500, 1e-3), 128.0, 1e-4)])
    rng = np.random.default_rng([seed, round(read.trajectory.lr.max() * 1e7)])
    rows: dict[str, np.ndarray] = {
        f"{side}/loss": losses("cpt", read.trajectory, side, steps, units=units)
        * np.exp(0.001 * rng.standard_normal(len(steps)))
        for side in ("upstream", "downstream")
    }
    for i, step in enumerate(steps.tolist()):
        run_folder.append_metrics({"step": step, "tokens": step * 128} | {k: float(v[i]) for k, v in rows.items()})
    return read.trajectory


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for name, overrides in ARMS.items():
        _write_run(folder / name, make_config(*TINY, *overrides))
    return folder


def _write_csv(path: Path, curve: object) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "tokens", "lr", "upstream_loss", "downstream_loss"))
        t = curve.trajectory
        for step, up, down in zip(curve.losses["upstream"][0], *(v for _, v in curve.losses.values()), strict=True):
            writer.writerow((step, step * t.tokens_per_step, t.lr[max(step, 1) - 1], up, down))


def test_a_sweep_is_fitted_held_out_predicted_and_drawn(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecast([str(sweep), "max_lr=5e-4,1.5e-3,5e-3", "schedule=cosine,infinite", "max_forgetting=0.2"])
    said = capsys.readouterr().out
    assert "law cpt, fitted to 4 runs: constant, high, low, wsd" in said
    assert "held out" in said
    assert "EXTRAPOLATES: max_lr 0.0015 outside 0.0003..0.001 of the runs of its shape" in said
    assert "no number for cosine max_lr=0.005: max_lr 0.005 is 5 times the highest that was run" in said
    assert re.search(r"rewarm train .*schedule=", said)
    report = sweep / "report"
    content = json.loads((report / "forecast.json").read_text())
    assert content["said"] in said
    assert {e["run"] for e in content["holdout"]} == set(ARMS)
    assert all(abs(e["error"]) < 0.01 for e in content["holdout"] if not e["beyond"])
    assert (len(content["forecasts"]), len(content["withheld"])) == (4, 2)
    assert content["recommendation"]["measured"]["runs"] == ["high"]
    drawn = ["forecast-fit", "forecast-curves", "forecast-pareto"]
    assert content["figures"] == [f"{name}.{kind}" for name in drawn for kind in ("png", "svg")]
    for name in content["figures"]:
        head = b"\x89PNG" if name.endswith(".png") else b"<?xml"
        assert (report / name).read_bytes().startswith(head)
    with (report / "forecast.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"fitted", "held out", "predicted"}
    for row in rows:
        if row["kind"] == "predicted":
            assert float(row["low"]) < float(row["predicted"]) < float(row["high"])


def test_the_page_of_a_report_says_what_the_forecast_said(sweep: Path, tmp_path: Path) -> None:
    forecast([str(sweep), "weights=1,1", f"output={tmp_path}"])
    make_report([str(sweep), f"out={tmp_path}"])
    text = (tmp_path / "index.html").read_text()
    shown = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])["forecast"]
    content = json.loads((tmp_path / "forecast.json").read_text())
    assert shown["said"] == content["said"]
    assert "rewarm train" in shown["said"]
    assert [f"{name}.svg" for name, _ in shown["figures"]] == [name for name in content["figures"] if "svg" in name]


def test_the_recommended_command_is_one_that_training_accepts(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast([str(sweep), "weights=1,1", f"output={tmp_path}"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  rewarm train ")]
    config = make_config(*TINY, *line.split()[2:])
    assert make_plan(config).steps == pytest.approx(500, abs=375)


def test_a_fit_that_cannot_be_trusted_recommends_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast([str(sweep / "low"), "weights=1,1", f"output={tmp_path}"])
    said = capsys.readouterr().out
    assert "NOT RELIABLE: nothing could be held out" in said
    assert "No recommendation" in said
    assert json.loads((tmp_path / "forecast.json").read_text())["recommendation"]["chosen"] is None


def test_files_of_other_trainers_are_forecast_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arm in arms(noise=0.001):
        _write_csv(tmp_path / f"{arm.name}.csv", arm)
    files = [str(path) for path in sorted(tmp_path.glob("*.csv"))]
    forecast([*files, "max_lr=2e-4", "start_lr=3e-5"])
    assert "fitted to 4 runs: constant, high, low, wsd" in capsys.readouterr().out
    content = json.loads((tmp_path / "report" / "forecast.json").read_text())
    assert all(abs(e["error"]) < 0.01 for e in content["holdout"] if not e["beyond"])


def test_an_unfinished_run_is_used_as_far_as_it_is_and_a_young_one_left_out(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _write_run(tmp_path / "half", make_config(*TINY, "max_lr=5e-4"), until=240)
    young = RunFolder(tmp_path / "young")
    young.create()
    young.write_config(make_config(*TINY))
    young.append_metrics({"step": 0, "tokens": 0, "upstream/loss": 3.0})
    forecast([str(sweep), str(tmp_path), f"output={tmp_path / 'out'}"])
    assert "unfinished, used as far as they are: half" in capsys.readouterr().out
    assert "young: left out" in caplog.text


def test_runs_from_scratch_are_left_to_the_one_dataset_law(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _write_run(tmp_path / "fresh", make_config(*TINY, "init=scratch"))
    forecast([str(sweep), str(tmp_path), f"output={tmp_path / 'out'}"])
    assert "fresh: left out, it starts from scratch" in caplog.text
    assert "fitted to 4 runs" in capsys.readouterr().out
    forecast([str(tmp_path / "fresh"), "law=single", f"output={tmp_path / 'out'}"])
    assert "law single, fitted to 1 runs: fresh" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart_by_their_folders(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_run(tmp_path / "other" / "low", make_config(*TINY, "max_lr=4e-4"))
    forecast([str(sweep), str(tmp_path / "other"), f"output={tmp_path / 'out'}"])
    assert "other/low" in capsys.readouterr().out


def test_seeds_of_one_arm_are_one_arm(tmp_path: Path) -> None:
    for seed in (0, 1):
        _write_run(tmp_path / f"s{seed}", make_config(*TINY, f"seed={seed}", f"run_dir=x{seed}"), seed)
    first, second = (read_run(path) for path in find_runs([tmp_path]))
    assert first is not None
    assert second is not None
    assert first.arm == second.arm


def test_a_run_that_was_really_trained_is_read(small: Callable[..., Config]) -> None:
    config = small("evaluation.every=1", "evaluation.dense_every=1", "init=scratch")
    run(config)
    curve = read_run(Path(config.run_dir))
    assert curve is not None
    assert curve.finished
    assert curve.losses["upstream"][0].tolist() == list(range(11))
    logged = open_run(Path(config.run_dir)).metrics.curve("lr")[1]
    assert curve.trajectory.lr == pytest.approx(logged)


def test_results_go_beside_what_was_asked_about(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    runs = tmp_path / "runs"
    assert output_folder(parse([str(runs / "a")])) == runs / "a" / "report"
    assert output_folder(parse([str(runs / "a"), str(runs / "b")])) == runs / "report"
    assert output_folder(parse([str(runs), f"output={tmp_path}"])) == tmp_path


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        forecast([str(tmp_path)])


def test_the_command_line_answers_a_mistake_in_one_line(sweep: Path) -> None:
    result = rewarm("forecast", str(sweep), "law=ctp")
    assert result.returncode == 2
    assert result.stderr == (
        "rewarm: law=ctp: unknown choice, did you mean 'cpt'? "
        "(choices: auto, cpt, cpt_multipower, multipower, single)\n"
    )
    assert result.stdout == ""


def test_runs_that_were_held_to_their_start_in_other_ways_are_not_fitted_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def named(name: str, *words: str) -> Curve:
        return replace(curve(name, trajectory("cosine", 3e-4)), config=make_config(*words))

    def kept(curves: list[Curve]) -> str:
        return " ".join(curve.name for curve in of_one_remedy(curves))

    plain = [named("a", "replay=0"), named("b", "replay=0.1"), named("c", "replay=0.2")]
    written = named("written", "replay=0.1", "replay_source=self")
    taught = named("taught", "anchor.kl=1")
    assert kept([*plain, written, taught]) == "a b c"
    assert "taught: left out, it has anchor.kl=1, which the others have not and no law knows" in caplog.text
    assert "written: left out, it has replay_source, which" in caplog.text
    assert kept([plain[0], written]) == "a written"
    alike = [named("d", "anchor.l2=3"), named("e", "anchor.l2=3", "replay=0.1")]
    assert kept(alike) == "d e"
    assert kept([plain[0], alike[0]]) == "a"
