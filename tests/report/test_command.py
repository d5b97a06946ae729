"""`rewarm report`, from run folders to files."""

from __future__ import annotations

import csv
import json
import re
import threading
import time
from pathlib import Path

import pytest

from rewarm.commands.report import parse, report
from rewarm.errors import DataError, UserError
from rewarm.runs.run import open_run
from rewarm.runs.summary import summarize
from tests.report.runs import write_run


def test_the_papers_figures_are_drawn(reported: Path) -> None:
    names = {path.stem for path in (reported / "report").glob("*.png")}
    assert names >= {f"figure-{n}" for n in ("1a", "1b", "2", "3", "4", "5", "6", "7", "8", "9")}
    assert names == {path.stem for path in (reported / "report").glob("*.svg")}
    assert all(path.stat().st_size > 10_000 for path in (reported / "report").glob("*.png"))


def test_the_table_has_a_row_for_each_arm_with_its_spread(reported: Path) -> None:
    with (reported / "report" / "summary.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert len(rows) == 16
    row = rows["cosine_1"]
    summaries = [open_run(reported / f"cosine_1,seed={seed}").summary for seed in (0, 1)]
    finals = [summary["upstream"]["final"] for summary in summaries if summary]
    assert float(row["upstream_final"]) == pytest.approx(sum(finals) / 2)
    assert float(row["upstream_final_sd"]) == pytest.approx(abs(finals[0] - finals[1]) / 2**0.5)
    assert row["seeds"] == "2"
    markdown = (reported / "report" / "summary.md").read_text()
    assert "| cosine_1 | 2 |" in markdown
    assert " ± " in markdown


def test_verdicts_are_written_with_what_they_rest_on(reported: Path) -> None:
    found = json.loads((reported / "report" / "verdicts.json").read_text())
    assert [verdict["number"] for verdict in found] == [1, 2, 3, 4, 5, 6]
    for verdict in found:
        assert verdict["verdict"] == "supported"
        assert verdict["tests"]
        assert verdict["runs"]
        assert all(len(test["samples"]) == 2 for test in verdict["tests"])
    assert (reported / "report" / "verdicts.md").read_text().count("**supported**") == 6


def test_a_single_unfinished_run_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "cosine_1", finished=False)
    report([str(run.path), f"out={tmp_path / 'out'}"])
    assert "1 not finished" in (tmp_path / "out" / "index.html").read_text()
    said = capsys.readouterr().out
    assert "Left out, as they stopped earlier or are not finished: 1 of 1 arms." in said
    assert "claim" not in said  # one arm was made for none of them


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    run = write_run(tmp_path, "cosine_1")
    text = run.path.joinpath("config.yaml").read_text()
    run.path.joinpath("config.yaml").write_text(re.sub(r"(?m)^(arm:\n  name): .*$", rf"\1: '{hostile}'", text))
    report([str(tmp_path)])
    page = (tmp_path / "report" / "index.html").read_text()
    assert hostile not in page
    assert page.count("</script>") == 4


def test_the_page_asks_nobody_for_anything(reported: Path) -> None:
    page = (reported / "report" / "index.html").read_text()
    assert "How should a pretrained model be re-warmed?" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"https://github.com/leeoniya/uPlot"}
    assert len(page) < 3_000_000 / 48 * 32
    assert "default-src 'none'" in page


def test_watching_follows_a_run_to_its_end(tmp_path: Path) -> None:
    run = write_run(tmp_path, "cosine_1", finished=False)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[:5]))
    thread = threading.Thread(target=report, args=(["--watch", str(run.path), "every=0.05"],))
    thread.start()
    page = run.path / "report" / "index.html"
    deadline = time.monotonic() + 60
    while not page.is_file() and time.monotonic() < deadline:
        thread.join(0.05)
    first = page.read_text()
    assert '"refresh":1' in first
    (run.path / "metrics.jsonl").write_text("".join(lines))
    run.write_summary(summarize(open_run(run.path).metrics))
    thread.join(60)
    assert not thread.is_alive()
    assert '"refresh":null' in page.read_text()
    assert len(page.read_text()) > len(first)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "give a run's folder"),
        (["x", "--wach"], "did you mean '--watch'"),
        (["x", "wandbb=true"], "did you mean 'wandb'"),
        (["x", "wandb=maybe"], "must be true or false"),
        (["x", "every=0"], "above 0"),
        (["x", "every=often"], "above 0"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments: list[str], advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        parse(arguments)


def test_a_run_that_was_never_scored_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, "cosine_1", finished=False)
    (run.path / "metrics.jsonl").write_text('{"step": 1, "tokens": 5, "lr": 1.0}\n')
    with pytest.raises(DataError, match="scored"):
        report([str(tmp_path)])
