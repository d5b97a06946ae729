"""Every key with extreme values: refused in one line, or a run whose first update is what was asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import torch

from rewarm.config.checks import check
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.config.values import Within, build, taken_by
from rewarm.errors import RewarmError, UserError
from rewarm.runs.folder import METRICS
from rewarm.runs.metrics import read_metrics
from rewarm.training.run import run
from tests.conftest import make_config

MICRO = (
    *("init=scratch", "model.hidden_size=8", "model.heads=2", "model.layers=1", "model.intermediate_size=16"),
    *("model.rotary_pct=0.5", "train.batch_size=2", "train.context=8", "train.threads=1", "train.compile=false"),
    *("budget=16", "data.validation_tokens=64", "data.shuffle_window=8", "tracker=none", "device=cpu"),
)
"""A run of one update that takes an eighth of a second."""
EXTREMES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 33, 10**9, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.5, 1.5, 1e-3, 1e-7, 1e-308, 5e-324, 1e12, 1e308, math.inf, -math.inf, math.nan),
    *(None, True, "", "x", "../x", "12q", "1e999", "nan", "\0", "x" * 300, "٣", [], ["x"], {}, {"x": 1}),
)
COSTLY = (
    *("train.compile", "data.shuffle_window", "data.shard_tokens", "data.validation_tokens", "data.workers"),
    *("model.vocab_size", "model.layers", "model.intermediate_size"),
)
"""Keys whose extremes are sound and take long: they are planned and not run."""


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, takes in taken_by(kind).items():
        if is_dataclass(takes):
            yield from _keys(takes, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", takes


def _bound(takes: Any) -> Within | None:
    """Return the bounds of a number, also where it may be null."""
    if get_origin(takes) is Annotated:
        rule = get_args(takes)[1]
        return rule if isinstance(rule, Within) else None
    return next((bound for inner in get_args(takes) if (bound := _bound(inner))), None)


KEYS = dict(_keys(Config))


def _values(key: str) -> Iterator[Any]:
    yield from EXTREMES
    if bound := _bound(KEYS[key]):
        yield from (
            bound.least,
            min(bound.most, bound.below),
            math.nextafter(bound.most, math.inf),
            bound.least - 1e-9,
        )


@pytest.fixture(scope="module")
def micro() -> dict[str, Any]:
    return asdict(make_config(*MICRO))


def _with(values: dict[str, Any], key: str, value: Any) -> Config:
    """Return the checked config of `values` with another one for `key`."""
    changed = deepcopy(values)
    *groups, last = key.split(".")
    reduce(dict.__getitem__, groups, changed)[last] = value  # type: ignore[arg-type]
    config = check(build(Config, changed))
    make_plan(config)
    return config


def _assert_one_line(error: RewarmError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600, error


def _accepted(values: dict[str, Any], key: str) -> list[Config]:
    found = []
    for value in _values(key):
        try:
            found.append(_with(values, key, value))
        except UserError as error:
            _assert_one_line(error)
    return found


@pytest.mark.parametrize("key", KEYS)
def test_an_extreme_is_refused_in_one_line_or_planned(micro: dict[str, Any], key: str) -> None:
    accepted = _accepted(micro, key)
    assert len(accepted) < len(list(_values(key))), "no key takes everything"
    for config in accepted:
        # What was accepted is written into config.yaml, and must come back.
        assert build(Config, asdict(config)) == config


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _extremes(micro: dict[str, Any], key: str) -> list[Config]:
    """Return the accepted configs with the lowest and the highest value of a number; of another key, one."""
    accepted = {repr(_value(c, key)): c for c in _accepted(micro, key)}
    numbers = [c for c in accepted.values() if isinstance(_value(c, key), int | float)]
    if len(numbers) < 2:
        return list(accepted.values())[-1:]
    ordered = sorted(numbers, key=lambda c: float(_value(c, key)))
    return [ordered[0], ordered[-1]]


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run in a folder of the test's own, and leave threads and logging as they were."""
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    threads = torch.get_num_threads()
    yield inside
    torch.set_num_threads(threads)
    logging.getLogger().handlers.clear()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("key", [key for key in KEYS if key not in COSTLY])
def test_an_accepted_extreme_trains_or_says_in_one_line_why_not(micro: dict[str, Any], key: str) -> None:
    for number, config in enumerate(_extremes(micro, key)):
        changes = {} if key == "run_dir" else {"run_dir": f"run-{number}"}
        scaled = key.startswith("scaler.")  # which FP16 alone reads
        changed = build(Config, asdict(config) | changes | ({"precision": "fp16"} if scaled else {}))
        try:
            run(changed)
        except RewarmError as error:
            _assert_one_line(error)
            continue
        folder = Path(changed.run_dir)
        last = {key: values[-1] for key, values in read_metrics(folder / METRICS).columns.items()}
        assert last["skipped"] <= scaled, "a scale may be too large at first"
        assert 7 < last["upstream/loss"] < 10, "near the loss of a model that knows nothing, ln(4096) = 8.3"
        assert last["skipped"] or last["grad_norm"] > 0
