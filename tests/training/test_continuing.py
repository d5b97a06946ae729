"""What counts as the same run when a command comes back to its folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewarm.config.differences import differing
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.runs.run import Run, open_run
from rewarm.training.resume import check_continues
from tests.conftest import make_config


def begun(folder: Path, config: Config, **changes: Any) -> Run:
    """Return a run that was begun with `config`, with values of its `config.yaml` as another version wrote them."""
    values = asdict(config)
    for key, value in changes.items():
        *groups, last = key.split("__")
        group = values
        for name in groups:
            group = group[name]
        group[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return open_run(folder)


def test_tokens_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    config = make_config("budget=2_048_000", "data.shard_tokens=1e6", "checkpoint.milestones=[500_000]", "horizon=4M")
    written = {"budget": "2.048M", "horizon": "4M", "data__shard_tokens": "1M", "data__validation_tokens": "32_768"}
    assert not check_continues(begun(tmp_path, config, **written, checkpoint__milestones=["0.5M"]), config)


def test_a_source_is_the_same_as_a_path_and_as_a_group(tmp_path: Path) -> None:
    given = make_config("data=files", "data.upstream=old/", "data.downstream=new.jsonl")
    written = make_config("data=files", "data.upstream={path:old/}", "data.downstream={kind:files,path:new.jsonl}")
    assert not differing(given, written)
    run = begun(tmp_path, given, data__upstream="old/", data__downstream={"path": "new.jsonl"})
    assert not check_continues(run, given)


def test_an_arm_of_before_there_was_a_stop_goes_on_as_it_was(tmp_path: Path) -> None:
    """It had a budget under its horizon; today the arm has the horizon as its budget, and a stop."""
    config = make_config("experiment=warmup_length", "arm=warmup_2")
    experiment = {"name": "warmup_length", "question": "", "horizon": "4.096M", "budget": "2.048M", "short": "2.048M"}
    before: dict[str, Any] = {"budget": "2.048M", "horizon": "4.096M", "experiment": experiment}
    begun(tmp_path, config, **before, evaluation__every=50)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["stop"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run = open_run(tmp_path)
    assert run.plan == make_plan(config)
    assert not check_continues(run, config)


def test_another_end_is_an_extension_and_another_curve_is_another_run(tmp_path: Path) -> None:
    run = begun(tmp_path, make_config("budget=4M", "stop=1M"))
    with pytest.raises(UserError, match=r"give extend=true .*: stop \(was 1000000, now 2000000\)"):
        check_continues(run, make_config("budget=4M", "stop=2M"))
    assert check_continues(run, make_config("budget=4M", "stop=2M", "extend=true"))
    with pytest.raises(UserError, match=r"or undo: max_lr \(was 0.001, now 0.002\)$"):
        check_continues(run, make_config("budget=4M", "stop=1M", "max_lr=2e-3"))
