from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rewarm.commands.recipe import recipe
from rewarm.errors import RewarmError
from rewarm.recipes.recipe import Array, Export, Recipe, distance, recipe_of, render
from rewarm.recipes.trainers import TRAINERS
from rewarm.schedules import SCHEDULES, lr_curve
from tests.conftest import make_config

SIZE = ("budget=100k", "train.batch_size=8", "train.context=64", "max_lr=3e-4")
EXACT = {
    ("torchtitan", "constant"),
    ("olmo-core", "constant"),
    ("olmo-core", "cosine"),
    ("olmo-core", "linear"),
    ("olmo-core", "wsd"),
    ("olmo-core", "no_rewarm"),
}
"""Pairs whose LR is ours at every update: these trainers count as we do."""


def made(schedule: str, *more: str) -> Recipe:
    warmup = () if schedule == "no_rewarm" else ("warmup=0.05",)
    return recipe_of(make_config(f"schedule={schedule}", *SIZE, *warmup, *more))


def updates(of: Recipe) -> Array:
    return np.arange(1, of.steps + 1, dtype=np.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("trainer", [t for t in TRAINERS if t != "json"])
def test_the_lr_lies_where_the_settings_say(trainer: str, schedule: str) -> None:
    """Trainers one update behind are ours shifted by one; what has no counterpart is said."""
    ours = made(schedule)
    export = TRAINERS[trainer](ours)
    assert export.curve is not None
    theirs = export.curve(updates(ours))
    assert theirs.shape == (ours.steps,)
    assert (theirs >= 0).all()
    assert theirs.max() <= ours.spec.max_lr * (1 + 1e-12)
    if (trainer, schedule) in EXACT:
        assert distance(ours, export.curve)[0] < 1e-12
    text = render(ours, export)
    assert f"at most {distance(ours, export.curve)[0]:.2%} from rewarm's" in text
    if schedule.startswith("infinite"):
        assert "has no counterpart" in text


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd", "inverse_sqrt", "no_rewarm"])
def test_transformers_own_scheduler_has_the_lr_that_is_foretold(schedule: str) -> None:
    from transformers import get_scheduler

    ours = made(schedule)
    export = TRAINERS["transformers"](ours)
    said = yaml.safe_load(export.text)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=said["learning_rate"])
    scheduler = get_scheduler(
        said["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=said["warmup_steps"],
        num_training_steps=said["max_steps"],
        scheduler_specific_kwargs=said.get("lr_scheduler_kwargs"),
    )
    theirs = []
    for _ in range(ours.steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert export.curve is not None
    np.testing.assert_allclose(theirs, export.curve(updates(ours)), rtol=1e-12, atol=1e-18)


def test_every_setting_is_one_of_transformers_own() -> None:
    from transformers import TrainingArguments

    ours = made("wsd", "replay=0.05", "precision=fp32")
    text = render(ours, TRAINERS["transformers"](ours))
    assert yaml.safe_load(text).keys() <= {f.name for f in fields(TrainingArguments)}
    assert "mix 0.05 of" in text


def test_gpt_neox_as_the_paper_ran_it_is_ours_one_update_later() -> None:
    ours = made("cosine_neox")
    export = TRAINERS["gpt-neox"](ours)
    assert export.curve is not None
    np.testing.assert_allclose(export.curve(updates(ours) + 1), lr_curve(ours.spec, updates(ours)), rtol=1e-12)


@pytest.mark.parametrize("trainer", ["torchtitan", "megatron", "nanotron"])
def test_a_decay_of_its_own_length_is_kept(trainer: str) -> None:
    ours = made("wsd", "schedule.decay_fraction=0.3")
    export: Export = TRAINERS[trainer](ours)
    assert export.curve is not None
    begins = ours.spec.total_steps - ours.decay_steps
    curve = export.curve(updates(ours))
    assert curve[begins - 3] == pytest.approx(3e-4)
    assert curve[begins + 3] < 2.9e-4


def test_the_command_takes_overrides_a_run_or_a_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe([*SIZE, "schedule=wsd", "to=json"])
    wanted = json.loads(capsys.readouterr().out)
    assert wanted["schedule"]["name"] == "wsd"
    advice = tmp_path / "forecast.json"
    advice.write_text(json.dumps({"recommendation": {"chosen": {"overrides": "schedule=wsd max_lr=1e-3"}}}))
    recipe([str(advice), "to=torchtitan", f"output={tmp_path / 'job.toml'}"])
    assert "lr = 0.001" in (tmp_path / "job.toml").read_text()
    assert capsys.readouterr().err == ""
    recipe([*SIZE, "replay=0.1", "replay_source=texts.jsonl", "to=json"])
    assert "texts.jsonl" in capsys.readouterr().out
    chosen = {"overrides": "schedule=wsd max_lr=1e-3", "average": "alpha=0.7"}
    advice.write_text(json.dumps({"recommendation": {"chosen": chosen}}))
    recipe([str(advice), "to=json"])
    assert "advises the average alpha=0.7 of this training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["schedule=cosine"], "to=: give the trainer (transformers, axolotl"),
        (["to=megatorn"], "did you mean 'megatron'"),
        (["nowhere", "to=json"], "nowhere: is neither a run's folder nor a forecast.json"),
        (["schedule=cosin", "to=json"], "did you mean 'cosine'"),
        (["a", "b", "to=json"], "b: a recipe is made of one thing"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], says: str) -> None:
    with pytest.raises(RewarmError) as error:
        recipe(arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(RewarmError, match="is there already"):
        recipe([*SIZE, "to=json", f"output={path}"])
    assert path.read_text() == "mine"
