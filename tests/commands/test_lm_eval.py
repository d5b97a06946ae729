"""Task scores from a local task file, without a network, into the run's summary and the report's table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rewarm.commands.report import report
from tests.conftest import SMALL, rewarm

TASK = """\
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""


def test_local_tasks_are_scored_and_kept(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval.models.huggingface", reason="needs the harness: pip install 'rewarm[tasks]'")
    rows = [{"question": f"{a} plus {b} is", "choices": [f" {a + b}", " no"]} for a in range(3) for b in range(3)]
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "capitals.yaml").write_text(TASK.format(data=tmp_path / "data.json"))
    trained = rewarm("train", *SMALL, "init=scratch", "run_dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    arguments = (*SMALL, "init=run", f"tasks=[{tmp_path / 'capitals.yaml'}]")
    done = rewarm("eval", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("tasks/capitals/acc ")]
    accuracy = float(line.split()[1])
    assert accuracy * 9 == pytest.approx(round(accuracy * 9))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tasks"] == {"step-10": {"capitals": {"acc": accuracy}}}
    report([str(tmp_path / "run")])
    with (tmp_path / "run" / "report" / "summary.csv").open() as file:
        assert float(next(csv.DictReader(file))["task:capitals acc"]) == accuracy


@pytest.mark.parametrize(
    ("name", "content", "advice"), [("missing.yaml", None, "cannot be read"), ("empty.yaml", "a: 1", "names no task")]
)
def test_a_task_file_that_is_none_is_refused(tmp_path: Path, name: str, content: str | None, advice: str) -> None:
    pytest.importorskip("lm_eval.models.huggingface", reason="needs the harness: pip install 'rewarm[tasks]'")
    if content is not None:
        (tmp_path / name).write_text(content)
    done = rewarm("eval", *SMALL, "init=scratch", f"tasks=[{name}]", cwd=tmp_path)
    assert done.returncode == 2
    assert advice in done.stderr.splitlines()[-1]
