from pathlib import Path

import pytest

from rewarm.errors import UserError
from rewarm.forecast.options import parse


def test_paths_and_overrides_may_be_mixed(tmp_path: Path) -> None:
    odd = tmp_path / "max_lr=1e-4"
    odd.mkdir()
    options = parse(["law=auto", str(odd), "max_lr=1e-4,2e-4", "schedule=cosine,infinite", "budget=50M,1.5B"])
    assert options.paths == (odd,)
    assert options.max_lr == (1e-4, 2e-4)
    assert options.schedule == ("cosine", "infinite_cosine")
    assert options.budget == (50_000_000, 1_500_000_000)
    assert options.predicts
    assert not options.recommends


def test_forgetting_is_nats_or_a_share(tmp_path: Path) -> None:
    assert parse([str(tmp_path), "max_forgetting=0.05"]).max_forgetting == 0.05
    share = parse([str(tmp_path), "max_forgetting=5%"])
    assert share.max_forgetting == 0.05
    assert share.forgetting_is_share


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("maxlr=1e-4", "maxlr: unknown key, did you mean 'max_lr'?"),
        ("schedule=cosin", "schedule=cosin: unknown choice, did you mean 'cosine'?"),
        ("law=cp", "law=cp: unknown choice, did you mean 'cpt'?"),
        ("max_lr=high", "max_lr=high: is not a number"),
        ("max_lr=1e-4,0", "max_lr=0: must be above 0 and at most 1"),
        ("max_lr=3", "max_lr=3: must be above 0 and at most 1"),
        ("warmup=2", "warmup=2: must be at least 0 and at most 1"),
        ("warmup=nan", "warmup=nan: must be at least 0"),
        ("budget=many", "budget=many: not a number of tokens"),
        ("weights=1", "weights=1: takes two numbers"),
        ("weights=0,0", "weights=0,0: one of the two must be above 0"),
        ("max_forgetting=-1", "max_forgetting=-1: must be at least 0"),
        ("seed=1.5", "seed=1.5: must be a whole number"),
        ("seed=", "seed=: needs a value"),
        ("--fast", "--fast: unknown option"),
        ("runs/none", "runs/none: no such run, folder or CSV file"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, argument: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse([str(tmp_path), argument])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_something_must_be_fitted() -> None:
    with pytest.raises(UserError, match="give the runs to fit"):
        parse(["max_lr=1e-4"])
