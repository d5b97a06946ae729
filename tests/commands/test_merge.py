"""`rewarm merge`: from arguments to scores, words, tables and a model that can be trained."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.commands.eval import evaluate
from rewarm.commands.merge import merge
from rewarm.commands.report import report
from rewarm.errors import DataError, RewarmError
from rewarm.report.arms import load
from rewarm.report.findings import studies_of
from rewarm.report.merging import Point, Row, lead, recovered, verdict
from rewarm.training.run import run as train
from tests.conftest import SMALL, make_config


@pytest.fixture(scope="module")
def sweep(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Return a sweep of the built-in model: a constant trunk and a decay from it, three seeds of the trunk."""

    def fill(folder: Path) -> None:
        words = [*SMALL, "init=builtin", "max_lr=1e-3", "warmup=0", "checkpoint.every=2", "checkpoint.keep=0"]
        for seed in range(3):
            place = f"run_dir='{folder}/constant,seed={seed}'"
            train(make_config(*words, "schedule=constant", f"seed={seed}", place))
        decay = ("schedule=wsd", "schedule.decay_fraction=0.4", "min_lr_ratio=0")
        train(make_config(*words, *decay, f"run_dir='{folder}/wsd,seed=0'"))

    return made_once("merging", fill)


def test_the_line_between_two_models(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end = str(sweep / "constant,seed=0")
    merge(["builtin", end, "alphas=0.5", "save=0.4", f"output={tmp_path}"])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "merge.json").read_text())
    rows = {row["alpha"]: row["scores"] for row in found["rows"]}
    assert list(rows) == [0.0, 0.4, 0.5, 1.0]
    assert [arm["seeds"] for arm in found["arms"]] == [3, 1]
    assert found["verdict"][0].startswith(("alpha=", "No average"))
    assert "what seeds differ by" in said
    for alpha, init in ((0.0, "builtin"), (1.0, end), (0.4, str(tmp_path / "merged-0.4"))):
        # Scored as a run on this data would: the ends as they are, and what was kept is what was scored.
        evaluate([f"init='{init}'", *(SMALL if alpha != 1 else ())])
        assert f"upstream/loss {rows[alpha]['upstream/loss']!r}\n" in capsys.readouterr().out
    assert {"merge.csv", "merge.json", "merge.png", "merge.svg", "merged-0.4"} == {p.name for p in tmp_path.iterdir()}
    train(make_config(*SMALL, f"init={tmp_path / 'merged-0.4'}", f"run_dir={tmp_path / 'on'}"))


def test_the_last_part_of_a_run_and_several_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trunk = sweep / "constant,seed=0"
    merge([str(trunk), "window=0.4,1", "shape=mean,1-sqrt", "save=best"])
    said = capsys.readouterr().out
    found = json.loads((trunk / "report" / "merge-window.json").read_text())
    assert [row["label"] for row in found["rows"]] == ["end", "mean 0.4", "1-sqrt 0.4", "mean 1", "1-sqrt 1"]
    assert list(found["rows"][1]["made_of"].values()) == pytest.approx([1 / 3] * 3), "steps 6, 8 and 10"
    assert said.count("of what wsd,seed=0 gains") == 4
    assert len(list((trunk / "report").glob("merged-*"))) == 1
    merge([*(str(sweep / f"constant,seed={seed}") for seed in range(3)), f"output={sweep / 'soup'}"])
    rows = json.loads((sweep / "soup" / "merge.json").read_text())["rows"]
    assert [row["label"].rpartition("/")[2] for row in rows][-2:] == ["constant,seed=2", "mean of 3"]


def test_a_report_shows_what_was_averaged(sweep: Path, tmp_path: Path) -> None:
    run = sweep / "constant,seed=1"
    merge(["builtin", str(run), "alphas=0.3,0.7"])
    merge([str(run), "window=1"])
    report([str(sweep), f"out={tmp_path / 'out'}"])
    line, window = (json.loads((run / "report" / f"{name}.json").read_text()) for name in ("merge", "merge-window"))
    told = (tmp_path / "out" / "summary.md").read_text()
    for found in (line, window):
        assert all(sentence in told for sentence in found["verdict"])
        for row in found["rows"]:
            assert f"| {row['label']} | {row['scores']['upstream/loss']:.4f} |" in told
    text = (tmp_path / "out" / "index.html").read_text()
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    shown = {merged["title"]: merged for setting in data["settings"] for merged in setting["merged"]}
    assert set(shown) >= {"averages of builtin and constant,seed=1", "averages of constant,seed=1"}
    drawn = base64.b64decode(shown["averages of constant,seed=1"]["figure"])
    assert drawn == (run / "report" / "merge-window.svg").read_bytes()
    (tradeoff,) = [chart for chart in studies_of(load([sweep]))[0].charts if chart.id == "tradeoff"]
    [points] = [points for label, points, on_line in tradeoff.averages if on_line and label.endswith(run.name)]
    assert [point[1] for point in points] == [row["scores"]["upstream/loss"] for row in line["rows"]]
    low, high = tradeoff.y_range
    assert all(low < point[1] < high for point in points)
    (run / "report" / "merge.json").write_text('{"rows": 3}')
    with pytest.raises(DataError, match=r"report/merge\.json: is not what rewarm merge wrote; merge again"):
        report([str(sweep), f"out={tmp_path / 'out'}"])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "give a start and an end"),
        (["builtin"], "builtin: is no run's folder"),
        (["builtin", "builtin@step500", "alphas=0,1.2"], "extrapolate=true"),
        (["builtin", "builtin@step500", "alphas=0:1"], "0:1:0.1"),
        (["builtin", "builtin@step500", "window=0.2"], "window=0.2: has no effect"),
        (["builtin", "builtin@step500", "save=often"], "save=often"),
        (["builtin", "nowhere"], "init=nowhere: no such checkpoint"),
        (["builtin", "scratch"], "scratch: has no weights"),
        (["builtin", "builtin", "alfas=1"], "alfas: unknown key"),
        (["RUN", "window=0.05"], "checkpoint.keep=0"),
        (["RUN", "window=2"], "window=2: must be a share"),
        (["RUN", "shape=square"], "shape=square: unknown choice"),
        (["RUN", "alphas=0.5"], "alphas=0.5: has no effect on one run"),
    ],
)
def test_a_mistake_is_answered_in_one_line(sweep: Path, arguments: list[str], answer: str) -> None:
    with pytest.raises(RewarmError) as said:
        merge([argument.replace("RUN", str(sweep / "constant,seed=1")) for argument in arguments])
    assert answer in str(said.value)


def row(upstream: float, downstream: float) -> Row:
    made_of = {"start": 0.5, "end": 0.5}
    return Row("alpha=0.5", {"upstream/loss": upstream, "downstream/loss": downstream}, made_of, 0.5)


def test_the_verdict_says_where_an_average_lies() -> None:
    points = [Point("low", (1.0, 3.0), 3), Point("high", (3.0, 1.0), 3)]
    assert lead((0.9, 0.8), points) == pytest.approx(2.1), "only when it is worse by this does an arm beat it"
    assert lead((3.2, 1.1), points) == pytest.approx(-0.1)
    assert "is better on both losses than high, by 0.200 nats or more (beyond" in verdict([row(2, 0.8)], points, 0.01)
    assert "each of the 2 arms of the sweep, by 0.100 nats or more (within" in verdict([row(0.9, 0.8)], points, 0.1)
    assert "lies on the front: no arm comes within 1.000 nats" in verdict([row(2.0, 2.0)], points, 0.01)
    assert "high is better on both losses by 0.100 nats or more (within what" in verdict([row(3.2, 1.1)], points, 1.0)
    assert "nobody can say" in verdict([row(2.0, 2.0)], points, None)
    assert recovered(row(2.0, 1.0), (3.0, 1.0), (1.0, 1.0)) == (0.5, None)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["builtin", "builtin@step500", "save=best", "weights=1"], "weights=1: takes two numbers"),
        (["builtin", "builtin@step500", "save=best", "max_forgetting=much"], "max_forgetting=much: is not a number"),
        (["builtin", "builtin@step500", "max_forgetting=0.1"], "max_forgetting=0.1: says which average is the best"),
        (["builtin", "builtin@step500", "builtin@step2125", "save=best", "max_forgetting=1"], "is not known here"),
        (["builtin", "builtin@step500", "save=0.5", "output=PLACE"], "is there already"),
    ],
)
def test_a_mistake_is_told_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str
) -> None:
    def scored(*_: object) -> None:
        raise AssertionError("scored")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rewarm.commands.merge.score", scored)
    (tmp_path / "merged-0.5").mkdir()
    with pytest.raises(RewarmError) as said:
        merge([argument.replace("PLACE", str(tmp_path)) for argument in arguments])
    assert answer in str(said.value)
