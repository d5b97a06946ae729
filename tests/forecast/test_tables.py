import logging
from pathlib import Path

import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.tables import Logged, read_csv, warmup_of

PLAIN = Logged()


def _write(path: Path, *lines: str) -> Path:
    file = path / "run.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def _good(n: int = 12) -> list[str]:
    return [f"{100 * i},{204800 * i},{min(i, 2) * 1.5e-4:g},{3 - 0.01 * i},{2.9 - 0.02 * i}" for i in range(n)]


HEADER = "step,tokens,lr,upstream/loss,downstream/loss"


def test_a_plain_file_becomes_a_curve(tmp_path: Path) -> None:
    curve = read_csv(_write(tmp_path, HEADER, *_good()), PLAIN)
    assert sorted(curve.losses) == ["downstream", "upstream"]
    assert curve.trajectory.tokens_per_step == 2048
    assert len(curve.trajectory.lr) == 1100
    assert curve.trajectory.lr[49] == pytest.approx(0.75e-4)
    assert curve.trajectory.warmup_steps == 200
    assert curve.losses["upstream"][0].tolist() == list(range(0, 1200, 100))


@pytest.mark.parametrize(
    "header",
    [
        "iteration,consumed_tokens,learning-rate,upstream loss,downstream_val_loss",
        "global_step,Tokens Seen,learning_rate,loss_upstream,validation/downstream/loss",
        "Step;tokens;LR;upstream;downstream",
    ],
)
def test_the_names_of_other_trainers_are_understood(tmp_path: Path, header: str) -> None:
    rows = [row.replace(",", ";") if ";" in header else row for row in _good()]
    assert sorted(read_csv(_write(tmp_path, header, *rows), PLAIN).losses) == ["downstream", "upstream"]


def test_training_loss_is_passed_over_beside_validation_and_used_alone(tmp_path: Path) -> None:
    both = read_csv(_write(tmp_path, "step,tokens,lr,train_loss,pile_loss", *_good()), PLAIN)
    assert list(both.losses) == ["pile"]
    alone = read_csv(_write(tmp_path, "step,tokens,lr,lm loss,x", *_good()), PLAIN)
    assert list(alone.losses) == ["loss"]


def test_perplexities_that_say_so_become_losses(tmp_path: Path) -> None:
    rows = [f"{i},{i * 2048},1e-4,{np.exp(3.0):.12g}" for i in range(1, 9)]
    curve = read_csv(_write(tmp_path, "step,tokens,lr,upstream_ppl", *rows), PLAIN)
    assert curve.losses["upstream"][1] == pytest.approx(np.full(8, 3.0))


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
        (["step,tokens,upstream_loss", "1,2,3"], "has no column lr; name the learning rate so"),
        (["lr,upstream_loss", "1e-4,3"], "has neither a column step nor tokens"),
        (["step,lr,other", "1,1e-4,3"], "has no loss; name one for example upstream_loss"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,high,2.8")], r"run.csv:5: upstream/loss=high: is not a number"),
        ([HEADER, *_replaced(3, "300,614400,3,2.9,2.8")], "lr=3: is above 1, so its unit must be another"),
        ([HEADER, *_replaced(3, "300,614400,-1e-4,2.9,2.8")], "lr=-0.0001: is below 0"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,25.5,2.8")], "upstream loss of 25.5: looks like a perplexity"),
        ([HEADER, *_replaced(3, "300,614400,3e-4,-1,2.8")], "upstream loss of -1: must be above 0"),
        ([HEADER, *[f"{i},{i * 0.002},1e-4,3,3" for i in range(1, 9)]], "tokens up to 0.016: looks like millions"),
        (["tokens,lr,upstream_loss", *[f"{i},1e-4,3" for i in range(1, 9)]], "tokens up to 8: looks like"),
        ([HEADER, *[f"{i},{i * 2048},0,3,3" for i in range(1, 9)]], "lr is never above 0"),
        ([HEADER, *_good(3)], "fewer than 4 losses"),
        (["step,tokens,lr,upstream_loss,upstream/loss", *_good()], "both read as upstream; rename one"),
        (["step,tokens,lr,upstream_loss,replay", *[f"{i},{i * 2048},1e-4,3,25" for i in range(1, 9)]], "replay=25"),
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
        (_replaced(3, "300,614400,3e-4,nan,2.8"), "1 losses of upstream/loss are not numbers"),
        (_replaced(3, ",,3e-4,2.9,2.8"), "1 rows without a step"),
        ([*_good()[:3], *_good()[9:], "1200,2457600,3e-4,2.9,2.8"], "no rows between steps 200 and 900"),
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
    curve = read_csv(_write(tmp_path, HEADER, *_good(), "300,614400,3e-4,1.5,2.8"), PLAIN)
    steps, loss = curve.losses["upstream"]
    assert loss[steps == 300].tolist() == [1.5]


def test_tokens_alone_need_no_steps(tmp_path: Path) -> None:
    rows = [f"{1e9 * i},3e-4,{3 - 0.01 * i}" for i in range(1, 31)]
    curve = read_csv(_write(tmp_path, "tokens,lr,upstream_loss", *rows), PLAIN)
    assert curve.trajectory.tokens == pytest.approx(30e9)
    given = read_csv(_write(tmp_path, "tokens,lr,upstream_loss", *rows), Logged(tokens_per_step=1e6))
    assert len(given.trajectory.lr) == 30_000


def test_steps_alone_are_drawn_as_steps_and_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{i},3e-4,{3 - 0.01 * i}" for i in range(1, 31)]
    curve = read_csv(_write(tmp_path, "step,lr,upstream_loss", *rows), PLAIN)
    assert curve.trajectory.tokens_per_step == 1
    assert "give tokens_per_step" in caplog.text


@pytest.mark.parametrize(
    ("lr", "steps"),
    [([0.1, 0.5, 1.0, 0.8], 3), ([1.0, 0.9, 0.5], 0), ([1.0, 1.0, 1.0], 0), ([0.25, 0.5, 0.75, 1.0], 4)],
)
def test_the_warm_up_is_read_off_the_lr(lr: list[float], steps: int) -> None:
    assert warmup_of(np.array(lr)) == steps
