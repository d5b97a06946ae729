"""The metrics of a run as columns: what damage to their file costs, and that it is said."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rewarm.errors import DataError
from rewarm.runs.metrics import parse, read_lines, read_metrics


def text(*rows: object) -> bytes:
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()


def at(step: object, **values: object) -> dict[str, object]:
    return {"step": step, "tokens": 128 * step if isinstance(step, int) else 0, **values}


def test_every_key_is_a_column_with_nan_where_a_line_has_no_value() -> None:
    metrics = parse(text(at(0, **{"upstream/loss": 2}), at(5, lr=1e-3), at(10, lr=None, **{"upstream/loss": 2.5})))
    assert set(metrics.columns) == {"step", "tokens", "upstream/loss", "lr"}
    assert metrics.steps.tolist() == [0, 5, 10]
    np.testing.assert_array_equal(metrics["lr"], [np.nan, 1e-3, np.nan])
    tokens, losses = metrics.curve("upstream/loss")
    assert (tokens.tolist(), losses.tolist()) == ([0, 1280], [2.0, 2.5])
    assert metrics.curve("upstream/loss", "step")[0].tolist() == [0, 10]
    assert np.isnan(metrics["never logged"]).all()
    assert metrics.damaged == ()


@pytest.mark.parametrize("broken", ['{"step": 20, "tok', "[1, 2]\n"])
def test_of_a_step_that_was_logged_twice_the_later_line_counts(broken: str) -> None:
    rows = (at(0, loss=2.0), at(10, loss=None), at(10, loss=2.5), at(5, loss=2.2), broken)
    metrics = parse(text(*rows))
    assert metrics.steps.tolist() == [0, 5, 10]
    assert metrics["loss"].tolist() == [2.0, 2.2, 2.5]


def test_a_line_that_a_killed_process_left_unfinished_is_no_damage() -> None:
    for rest in ('{"step": 10, "tok', '{"step": 10', "\0\0\0", "{"):
        metrics = parse(text(at(0), at(5), rest))
        assert (metrics.steps.tolist(), metrics.damaged) == ([0, 5], ())
    assert parse(text(at(0), json.dumps(at(5)))).steps.tolist() == [0, 5], "whole, but for its end"


DAMAGE = (
    *('{"step": 5, "tokens": 640', "{}", "", "null", "7", '"text"', "[]", '{"step": 5}', "\0" * 40, "\ufeff{}"),
    *(json.dumps(at(5)) + json.dumps(at(6)), '{"step": 5, "tokens": 640, "loss": "2.0"}'),
    *('{"step": 5, "tokens": 640, "loss": [2.0]}', '{"step": 5, "tokens": 640, "other": "2.0"}'),
    *(json.dumps({"step": step, "tokens": 640}) for step in ("5", [5], {"at": 5}, True, None, -5, 5.5, 2**60)),
    *('{"step": 1e999, "tokens": 640}', '{"step": NaN, "tokens": 640}', '{"step": 5, "tokens": Infinity}'),
    *(
        f'{{"step": {"9" * 400}, "tokens": 640}}',
        "[" * 100_000,
        f'{{"step": 5, "a": {"[" * 200_000}{"]" * 200_000}}}',
    ),
)


@pytest.mark.parametrize("line", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_line_is_counted_and_left_out(line: str) -> None:
    metrics = parse(text(at(0, loss=2.0), line + "\n", at(10, loss=2.5)))
    assert (metrics.steps.tolist(), metrics["loss"].tolist()) == ([0, 10], [2.0, 2.5])
    assert metrics.damaged == (2,)


def test_both_readers_find_the_same_and_flipped_bits_never_raise() -> None:
    random.seed(0)
    whole = text(
        *(at(step, **{"upstream/loss": random.random(), "lr": 1e-3 / (step + 1)}) for step in range(0, 60, 5))
    )
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(random.choice((0, 1, 1, 3))):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        metrics = parse(bytes(content))
        lines = list(read_lines(bytes(content)))
        assert metrics.damaged == tuple(number for number, _, values in lines if values is None)
        kept = {values["step"]: values for _, _, values in lines if values is not None}
        assert metrics["step"].tolist() == sorted(kept)
        for name, column in metrics.columns.items():
            np.testing.assert_array_equal(column, [kept[step].get(name, np.nan) for step in sorted(kept)])


def test_no_metrics_are_no_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert len(read_metrics(path)) == 0
    path.touch()
    assert len(read_metrics(path)) == 0
    assert read_metrics(path).curve("lr")[0].size == 0
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"metrics.jsonl: cannot be read \(Is a directory\)"):
        read_metrics(path)
