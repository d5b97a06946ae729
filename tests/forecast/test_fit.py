import numpy as np
import pytest

from rewarm.forecast.features import features, units_of
from rewarm.forecast.fit import fit, points_of, spread
from rewarm.forecast.laws import LAWS, form_of
from tests.forecast.synthetic import arms, losses, trajectory

UNSEEN = [("infinite_cosine", 3e-4, 0.01), ("linear", 4.5e-4, 0.005), ("cosine_neox", 2e-4, 0.02), ("wsd", 5e-4, 0.0)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("side", ["upstream", "downstream"])
def test_a_fit_to_noisy_curves_predicts_schedules_that_it_never_saw(law: str, side: str) -> None:
    curves = arms(law, noise=0.005)
    units = units_of([curve.trajectory for curve in curves])
    points = points_of(curves, side, units)
    found = fit(form_of(law, points.features, None), points, units, np.random.default_rng(0))
    for name, max_lr, warmup in UNSEEN:
        of = trajectory(name, max_lr, warmup=warmup)
        steps = np.arange(0, 2001, 20)
        predicted = found.predict(features(of, steps, units))
        assert np.abs(predicted / losses(law, of, side, steps) - 1).max() < 0.015


def test_a_curve_without_noise_is_met_almost_exactly() -> None:
    curves = arms(noise=0.0)
    units = units_of([curve.trajectory for curve in curves])
    points = points_of(curves, "upstream", units)
    found = fit(form_of("cpt", points.features, None), points, units, np.random.default_rng(0))
    assert np.abs(found.predict(points.features) / points.loss - 1).max() < 1e-3
    assert found.values["memory"] == pytest.approx(150 * 2048, rel=0.1)


def test_the_same_seed_gives_the_same_fit() -> None:
    curves = arms()
    units = units_of([curve.trajectory for curve in curves])
    points = points_of(curves, "downstream", units)
    form = form_of("cpt", points.features, None)
    first, second = (fit(form, points, units, np.random.default_rng(3)) for _ in range(2))
    assert first.theta.tolist() == second.theta.tolist()


def test_a_given_memory_is_kept() -> None:
    curves = arms()
    units = units_of([curve.trajectory for curve in curves], memory=3e6)
    points = points_of(curves, "upstream", units)
    found = fit(form_of("cpt", points.features, None, memory=3e6), points, units, np.random.default_rng(0))
    assert found.values["memory"] == 3e6
    assert "memory" not in found.shapes


def test_one_wild_measurement_hardly_moves_the_fit() -> None:
    curves = arms()
    units = units_of([curve.trajectory for curve in curves])
    points = points_of(curves, "upstream", units)
    form = form_of("cpt", points.features, None)
    clean = fit(form, points, units, np.random.default_rng(0)).predict(points.features)
    points.loss[40] *= 1.5
    hurt = fit(form, points, units, np.random.default_rng(0)).predict(points.features)
    assert np.abs(np.delete(hurt / clean - 1, 40)).max() < 0.005


def test_dense_evaluation_does_not_outweigh_the_rest() -> None:
    steps = np.concatenate([np.arange(0, 100, 1), np.arange(100, 2001, 100)])
    weights = spread(steps)
    assert weights.sum() == pytest.approx(1)
    assert weights[steps > 100].sum() > 0.5
    assert weights[50] < weights[-2]
