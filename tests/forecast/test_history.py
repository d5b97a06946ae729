from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.forecast.history import pretraining_of
from rewarm.runs.folder import RunFolder
from rewarm.runs.manifest import Conditions, Manifest
from rewarm.schedules import lr_curve
from tests.conftest import planned

Small = Callable[..., Config]


def test_scratch_has_nothing_behind_it(small: Small) -> None:
    found = pretraining_of(planned(small("init=scratch")))
    assert found is not None
    assert found.stretches == ()
    assert found.final_lr is None


def test_the_built_in_checkpoints_have_their_pre_training(small: Small) -> None:
    last, early = (pretraining_of(planned(small(f"init={init}"))) for init in ("builtin", "builtin@step1000"))
    assert last is not None
    assert early is not None
    assert len(last.stretches[0][0]) == 4000
    assert last.final_lr == pytest.approx(1e-4)
    assert early.stretches[0][0] == pytest.approx(last.stretches[0][0][:1000])


@pytest.mark.parametrize(("init", "steps"), [("", 143_000), ("@step27000", 27_000)])
def test_pythia_has_its_published_schedule(small: Small, init: str, steps: int) -> None:
    found = pretraining_of(planned(small("model=pythia-410m", f"init=EleutherAI/pythia-410m{init}")))
    assert found is not None
    [(lr, tokens_per_step)] = found.stretches
    assert len(lr) == steps
    assert lr.max() == pytest.approx(3e-4)
    assert tokens_per_step == 2_097_152
    if steps == 143_000:
        assert found.final_lr == pytest.approx(3e-5)


def test_a_run_that_starts_from_another_has_both_behind_it(small: Small, tmp_path: Path) -> None:
    first = small("init=builtin", "max_lr=5e-4", f"run_dir={tmp_path / 'first'}")
    (tmp_path / "first" / "checkpoints" / "step-5").mkdir(parents=True)
    RunFolder(tmp_path / "first").write_config(first)
    RunFolder(tmp_path / "first").write_manifest(Manifest(conditions=Conditions(rewarm="0")))
    plan = make_plan(first)
    for init in (f"{tmp_path / 'first'}@5", str(tmp_path / "first" / "checkpoints" / "step-5")):
        found = pretraining_of(planned(small(f"init='{init}'")))
        assert found is not None
        assert [len(lr) for lr, _ in found.stretches] == [4000, 5]
        assert found.stretches[1][0] == pytest.approx(lr_curve(plan.schedule, np.arange(1, 6)))


def test_a_folder_of_unknown_origin_has_an_unknown_history(small: Small, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert pretraining_of(planned(small(f"init={tmp_path / 'model'}"))) is None
