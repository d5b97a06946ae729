"""What a whole study says: bands, warnings, and laws chosen by hold-out."""

import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.curves import Curve
from rewarm.forecast.fitted import Study, study
from rewarm.forecast.judge import judge
from rewarm.forecast.options import Options
from tests.forecast.synthetic import arms, curve, losses, trajectory

FEW = {"paths": ()}


def test_bands_hold_the_true_curve_of_a_schedule_that_nobody_ran(sound: Study) -> None:
    of = trajectory("infinite_cosine", 4e-4)
    steps = np.arange(0, 2001, 25)
    for side, fitted in sound.sides.items():
        band = fitted.predict(of, steps)
        true = losses("cpt", of, side, steps)
        assert ((band.low < true) & (true < band.high)).mean() > 0.8
        assert (band.high - band.low).max() < 0.3


def test_a_sound_study_has_no_faults_and_names_what_it_cannot_know(sound: Study) -> None:
    found = judge(sound)
    assert found.faults == []


def test_noise_is_not_taken_for_a_law() -> None:
    rng = np.random.default_rng(0)

    def noisy(c: Curve) -> Curve:
        steps, _ = c.losses["upstream"]
        return Curve(c.name, c.arm, c.trajectory, {"upstream": (steps, 3 + rng.random(len(steps)))}, 2000)

    found = judge(study([noisy(c) for c in arms()], Options(paths=())))
    assert any("explains only" in fault for fault in found.faults)


def test_one_arm_alone_is_no_base_for_a_forecast() -> None:
    found = judge(study([curve("a", trajectory("cosine", 3e-4))], Options(paths=())))
    assert any("nothing could be held out" in fault for fault in found.faults)


def test_batches_of_other_sizes_and_unfinished_runs_are_pointed_out() -> None:
    curves = arms()
    big = trajectory("cosine", 3e-4)
    big = type(big)(big.lr, 4096.0, big.start_lr, big.warmup_steps)
    curves.append(Curve("big", "big", big, curves[0].losses, planned_steps=4000))
    found = judge(study(curves, Options(paths=(), holdout=("wsd",))))
    assert any("2,048 to 4,096 tokens" in caution for caution in found.cautions)
    assert any("unfinished, used as far as they are: big" in caution for caution in found.cautions)


def test_named_runs_are_predicted_and_never_fitted() -> None:
    result = study(arms(), Options(**FEW, holdout=("wsd",)))
    assert [c.name for c in result.fitted] == ["low", "high", "constant"]
    assert {e.run for e in result.held_out} == {"wsd"}
    with pytest.raises(UserError, match="names every run"):
        study(arms(), Options(**FEW, holdout=("low", "high", "constant", "wsd")))


def test_the_law_is_chosen_by_its_hold_out_error() -> None:
    result = study(arms("cpt", noise=0.001), Options(paths=(), law="auto", holdout=("wsd", "low")))
    assert result.law.startswith("cpt")
    assert result.tried[result.law] == min(result.tried.values())
    assert len(result.tried) == 4


def test_replay_is_an_input_and_its_term_is_chosen_by_hold_out() -> None:
    """With the true rho of 0.05 a hundredth of replay already helps much: no power of 1 - r follows that."""
    shares = {"r1": 0.01, "r5": 0.05, "r50": 0.5}
    runs = arms(noise=0.001) + [
        curve(name, trajectory("cosine", 4e-4, replay=share), noise=0.001, replay_term="hyperbolic")
        for name, share in shares.items()
    ]
    result = study(runs, Options(paths=(), holdout=("r5",)))
    assert len(result.tried) == 2
    assert result.replay_term == "hyperbolic"
    of = trajectory("wsd", 3e-4, replay=0.1)
    for side, fitted in result.sides.items():
        wanted = losses("cpt", of, side, np.array([2000]), replay_term="hyperbolic")
        assert fitted.predict(of, np.array([2000])).loss == pytest.approx(wanted, rel=0.01)


def test_runs_without_a_common_validation_set_are_refused() -> None:
    a, b = arms()[:2]
    runs = [Curve("a", "a", a.trajectory, {"x": a.losses["upstream"]}, 2000), b]
    with pytest.raises(UserError, match="no validation set in common"):
        study(runs, Options(paths=()))
