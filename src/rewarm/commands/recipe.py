"""`rewarm recipe`: the settings of another trainer for a run of ours."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rewarm.config.schema import Config
from rewarm.errors import DataError, UserError, choice
from rewarm.runs.run import is_run, open_run
from rewarm.storage import write_durably

USAGE = "rewarm recipe [overrides | RUN | forecast.json] to=TRAINER [output=FILE]"


def _of_forecast(path: Path) -> Config:
    """Return the config that a `forecast.json` recommends. Raises `UserError` where it recommends none."""
    from rewarm.config.compose import compose_config

    try:
        advice = json.loads(path.read_text(encoding="utf-8"))["recommendation"]
        chosen = advice and advice["chosen"]
        overrides = chosen and chosen["overrides"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no forecast.json of `rewarm forecast`; give one, a run or overrides") from error
    if overrides and chosen.get("average"):
        sys.stderr.write(
            f"{path}: advises the average {chosen['average']} of this training, which no trainer here makes; see the "
            f"rewarm merge that the forecast gave\n"
        )
    if not overrides:
        raise UserError(f"{path}: recommends nothing; ask for it with `rewarm forecast RUNS… max_forgetting=0.05`")
    return compose_config(*shlex.split(overrides))


def _config(arguments: Sequence[str]) -> Config:
    from rewarm.config.compose import compose_config

    files = [Path(a).expanduser() for a in arguments if "=" not in a]
    if not files:
        return compose_config(*arguments)
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]}: a recipe is made of one thing: {USAGE}")
    (path,) = files
    if path.is_file():
        return _of_forecast(path)
    if not is_run(path):
        raise UserError(f"{path}: is neither a run's folder nor a forecast.json: {USAGE}")
    return open_run(path).config


def recipe(arguments: Sequence[str]) -> None:
    """Write the settings that `to=` asks for to the terminal, or to the file `output=`."""
    from rewarm.recipes.recipe import recipe_of, render
    from rewarm.recipes.trainers import TRAINERS

    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in ("to", "output")}
    if not own.get("to"):
        raise UserError(f"to=: give the trainer ({', '.join(TRAINERS)}): {USAGE}")
    if own["to"] not in TRAINERS:
        raise choice("to", own["to"], TRAINERS)
    made = recipe_of(_config([a for a in arguments if a.partition("=")[0] not in own]))
    text = render(made, TRAINERS[own["to"]](made))
    if "output" not in own:
        sys.stdout.write(text)
        return
    path = Path(own["output"]).expanduser()
    if path.exists():
        raise UserError(f"output={path}: is there already; give another file")
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise UserError(f"output={path}: cannot be written ({error.strerror}); choose another file") from error
    sys.stdout.write(f"written to {path}\n")
