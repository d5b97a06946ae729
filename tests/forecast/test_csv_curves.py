import logging
from pathlib import Path

import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.csv_curves import IN_STEPS, read_csv
from rewarm.forecast.options import Logged

PLAIN = Logged()


def _write(path: Path, *lines: str, name: str = "run.csv") -> Path:
    file = path / name
    file.write_text("\n".join(lines) + "\n")
    return file


def _good(n: int = 12) -> list[str]:
    return [f"{100 * i},{204800 * i},{min(i, 2) * 1.5e-4:g},{3 - 0.01 * i},{2.9 - 0.02 * i}" for i in range(n)]


HEADER = "step,tokens,lr,upstream_loss,downstream_loss"


@pytest.mark.parametrize("header", [HEADER, "Step;Tokens;LR;upstream/loss;downstream_loss"])
def test_a_file_becomes_a_curve(tmp_path: Path, header: str) -> None:
    rows = [row.replace(",", ";") if ";" in header else row for row in _good()]
    curve = read_csv(_write(tmp_path, "", "# a remark", header, *rows), PLAIN)
    assert sorted(curve.losses) == ["downstream", "upstream"]
    assert curve.trajectory.tokens_per_step == 2048
    assert len(curve.trajectory.lr) == 1100
    assert curve.trajectory.lr[49] == pytest.approx(0.75e-4)
    assert curve.trajectory.warmup_steps == 200
    assert curve.losses["upstream"][0].tolist() == list(range(0, 1200, 100))


def test_training_loss_is_passed_over_beside_validation_and_used_alone(tmp_path: Path) -> None:
    both = read_csv(_write(tmp_path, "step,tokens,lr,train_loss,pile_loss", *_good()), PLAIN)
    assert list(both.losses) == ["pile"]
    alone = read_csv(_write(tmp_path, "step,tokens,lr,loss,x", *_good()), PLAIN)
    assert list(alone.losses) == ["loss"]


def test_perplexities_become_losses_where_no_loss_stands_beside_them(tmp_path: Path) -> None:
    rows = [f"{i},{i * 2048},1e-4,{np.exp(3.0):.12g},7,2.5" for i in range(1, 9)]
    curve = read_csv(_write(tmp_path, "step,tokens,lr,upstream_ppl,downstream_ppl,downstream_loss", *rows), PLAIN)
    assert curve.losses["upstream"][1] == pytest.approx(np.full(8, 3.0))
    assert curve.losses["downstream"][1] == pytest.approx(np.full(8, 2.5))


def test_empty_cells_are_rows_where_nothing_was_validated(tmp_path: Path) -> None:
    rows = [f"{i},{i * 2048},1e-4,{3.0 if i % 5 == 0 else ''}" for i in range(1, 41)]
    curve = read_csv(_write(tmp_path, "step,tokens,lr,upstream_loss", *rows), PLAIN)
    assert curve.losses["upstream"][0].tolist() == list(range(5, 41, 5))


def _replaced(n: int, row: str) -> list[str]:
    rows = _good()
    rows[n] = row
    return rows


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER], "has no rows"),
        ([], "cannot be read as a CSV file"),
        ([HEADER, "1,2,3e-4,3,2.9,8,9"], "cannot be read as a CSV file"),
        (
            ["step,tokens,upstream_loss", "1,2,3"],
            r"has no numbers in a column lr \(columns: step, tokens, upstream_loss\)",
        ),
        (["lr,upstream_loss", "1e-4,3"], "has no numbers in a column step or tokens"),
        (
            ["iteration,lr,upstream_loss", "1,1e-4,3"],
            r"column step or tokens \(columns: iteration, lr, ",
        ),
        (["step,lr,other", "1,1e-4,3"], "has no numbers in a column NAME_loss or NAME_ppl"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,high,2.8")], r"run.csv:5: upstream_loss=high: is not a number"),
        (["# x", "", HEADER, *_replaced(3, "300,614400,3e-4,high,2.8")], r"run.csv:7: upstream_loss=high"),
        ([HEADER, *_replaced(3, "300,614400,3,2.9,2.8")], "lr=3: is above 1, so its unit must be another"),
        ([HEADER, *_replaced(3, "300,614400,-1e-4,2.9,2.8")], "lr=-0.0001: is below 0"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,25.5,2.8")], "upstream=25.5: looks like a perplexity"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,-1,2.8")], "upstream=-1: is below 0"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,0,2.8")], "upstream=0: must be above 0"),
        ([HEADER, *[f"{i},{i * 0.002},1e-4,3,3" for i in range(1, 9)]], "tokens=0.016: looks like millions"),
        (["tokens,lr,upstream_loss", *[f"{i},1e-4,3" for i in range(1, 9)]], "tokens=8: looks like"),
        ([HEADER, *[f"{i},{i * 2048},0,3,3" for i in range(1, 9)]], "lr=0: is never above 0"),
        ([HEADER, *_good(3)], "fewer than 4 losses"),
        ([HEADER, ",,1e-4,3,3"], "has no numbers in a column step or tokens"),
        (["step,tokens,lr,upstream_loss,upstream/loss", *_good()], "two columns are called upstream_loss"),
        (["step,tokens,lr,upstream_loss,replay", *[f"{i},{i * 2048},1e-4,3,25" for i in range(1, 9)]], "replay=25"),
        (["# warmup_steps=2.5", HEADER, *_good()], "warmup_steps=2.5: must be a whole number"),
        (["# schedule=cosin", HEADER, *_good()], r"run.csv: schedule=cosin: .*did you mean 'cosine'"),
        (["# lr_curve=none.csv", HEADER, *_good()], r"none.csv: cannot be read"),
        (["# warmup_steps=5000", HEADER, *_good()], "warmup_steps=5000: is beyond the last line with an lr"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_csv(_write(tmp_path, *lines), PLAIN)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*_good()[6:], *_good()[:6]], "not in order of steps"),
        (_replaced(3, "300,614400,3e-4,inf,2.8"), "1 values of upstream_loss are infinite"),
        (_replaced(3, ",,3e-4,2.9,2.8"), "1 rows without a step"),
        ([*_good()[:3], *_good()[9:], "1200,2457600,3e-4,2.9,2.8"], "line to line between updates 200 and 900"),
        ([*_good()[:6], *[f"{100 * i},{409600 * i},3e-4,2.9,2.8" for i in range(6, 12)]], "tokens of a step change"),
    ],
)
def test_what_can_be_mended_is_mended_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: list[str], message: str
) -> None:
    with caplog.at_level(logging.WARNING):
        curve = read_csv(_write(tmp_path, HEADER, *rows), PLAIN)
    assert message in caplog.text
    steps, loss = curve.losses["upstream"]
    assert (np.diff(steps) > 0).all()
    assert np.isfinite(loss).all()
    assert np.isfinite(curve.trajectory.lr).all()


def test_of_a_step_logged_twice_the_later_row_counts(tmp_path: Path) -> None:
    curve = read_csv(_write(tmp_path, HEADER, *_good(), "300,614400,3e-4,1.5,"), PLAIN)
    at_300 = {side: loss[steps == 300].tolist() for side, (steps, loss) in curve.losses.items()}
    assert at_300 == {"upstream": [1.5], "downstream": [2.84]}


def test_tokens_alone_need_no_steps(tmp_path: Path) -> None:
    rows = [f"{1e9 * i},3e-4,{3 - 0.01 * i}" for i in range(1, 31)]
    curve = read_csv(_write(tmp_path, "tokens,lr,upstream_loss", *rows), PLAIN)
    assert curve.trajectory.tokens == pytest.approx(30e9)
    given = read_csv(_write(tmp_path, "tokens,lr,upstream_loss", *rows), Logged(tokens_per_step=1e6))
    assert len(given.trajectory.lr) == 30_000


def test_steps_alone_stand_for_tokens(tmp_path: Path) -> None:
    rows = [f"{i},3e-4,{3 - 0.01 * i}" for i in range(1, 31)]
    curve = read_csv(_write(tmp_path, "step,lr,upstream_loss", *rows), PLAIN)
    assert curve.trajectory.tokens_per_step == IN_STEPS == 1
    given = read_csv(_write(tmp_path, "step,lr,upstream_loss", *rows), Logged(tokens_per_step=2048))
    assert given.trajectory.tokens == 30 * 2048


LOSSES = [f"{100 * i},{3 - 0.01 * i}" for i in range(1, 11)]


def test_the_schedule_may_be_said_above_the_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = (
        "# schedule=wsd max_lr=3e-4 min_lr_ratio=0.2 warmup_steps=50 schedule.decay_fraction=0.4 tokens_per_step=2k"
    )
    curve = read_csv(_write(tmp_path, said, "step,loss", *LOSSES), PLAIN)
    t = curve.trajectory
    assert t.tokens_per_step == 2000
    assert t.warmup_steps == 50
    assert t.lr[[24, 49, 599, 799, 999]] == pytest.approx([1.5e-4, 3e-4, 3e-4, 1.8e-4, 0.6e-4])
    assert "schedule=wsd is taken with total_steps=1000\n" in caplog.text


def test_a_schedule_that_the_log_contradicts_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{row},3e-4" for row in LOSSES]
    read_csv(_write(tmp_path, "# schedule=cosine warmup_steps=10 total_steps=1000", "step,loss,lr", *rows), PLAIN)
    assert (
        "its lr differs from schedule=cosine by 90 % of the maximum at step 1000; the schedule counts" in caplog.text
    )


def test_the_lr_may_come_from_a_file_of_its_own(tmp_path: Path) -> None:
    rows = [f"{i},{(i + 1) * 1e-6}" for i in range(1001)]
    curve_file = _write(tmp_path, "step,lr", *rows, name="lr.csv")
    beside = read_csv(_write(tmp_path, "# lr_curve=lr.csv", "step,loss", *LOSSES), PLAIN)
    given = read_csv(_write(tmp_path, "step,loss", *LOSSES), Logged(lr_curve=curve_file))
    assert beside.trajectory.lr == pytest.approx(np.arange(2, 1002) * 1e-6)
    assert given.trajectory.lr.tolist() == beside.trajectory.lr.tolist()
