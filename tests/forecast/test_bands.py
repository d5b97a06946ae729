"""Bands hold what they say where it is known how wrong the fits are."""

import numpy as np
import pytest

from rewarm.forecast.bands import Miss, Openness, Scale, jitter_of
from rewarm.forecast.fitted import Study
from tests.forecast.synthetic import trajectory

POINTS = np.linspace(0, 1, 40)


def _slopes(where: float) -> np.ndarray:
    """Return the slopes of a straight line's two parameters along a run; they differ from run to run by `where`."""
    return np.stack([np.ones(len(POINTS)), where + 0.1 * POINTS], axis=1)


def _fit(wheres: list[float], losses: list[np.ndarray]) -> tuple[np.ndarray, Openness]:
    slopes = [_slopes(where) for where in wheres]
    theta = np.linalg.lstsq(np.concatenate(slopes), np.concatenate(losses), rcond=None)[0]
    return theta, Openness.of(sum(s.T @ s / len(s) for s in slopes), np.full(2, 10.0))


def _miss(theta: np.ndarray, openness: Openness, where: float, loss: np.ndarray) -> Miss:
    return Miss(_slopes(where) @ theta - loss, openness.moves(_slopes(where)), openness)


@pytest.mark.parametrize(("error", "jitter"), [(0.01, 0.001), (0.0, 0.01), (0.003, 0.003)])
def test_nine_of_ten_bands_hold_what_comes_inside_and_outside(error: float, jitter: float) -> None:
    """Straight lines through five runs, each off by an error of its own: bands for one between and one far beyond."""
    rng, held = np.random.default_rng(0), {0.4: 0, 2.0: 0}
    wheres = [0.0, 0.2, 0.5, 0.8, 1.0]
    for _ in range(300):
        runs = [error * rng.standard_normal() + jitter * rng.standard_normal(len(POINTS)) for _ in range(7)]
        misses = []
        for i, where in enumerate(wheres):
            others = [j for j in range(5) if j != i]
            fitted = _fit([wheres[j] for j in others], [runs[j] for j in others])
            misses.append(_miss(*fitted, where, runs[i]))
        theta, openness = _fit(wheres, runs[:5])
        in_sample = [_miss(theta, openness, where, runs[i]) for i, where in enumerate(wheres)]
        scale = Scale.of(misses, in_sample, arms=5)
        for asked, got in zip(held, runs[5:], strict=True):
            miss = _miss(theta, openness, asked, got)
            held[asked] += abs(miss.log_errors[-1]) < scale.half_band(scale.deviation(openness, miss.moves))[-1]
    for count in held.values():
        assert 0.8 <= count / 300 <= 0.97


def test_jitter_is_told_from_drift() -> None:
    rng = np.random.default_rng(0)
    curves = [0.02 * np.sin(3 * POINTS + i) + 0.003 * rng.standard_normal(len(POINTS)) for i in range(6)]
    assert jitter_of(curves) == pytest.approx(0.003, rel=0.25)
    assert jitter_of([np.ones(3)]) == 0


def test_draws_scatter_as_far_as_bands_are_wide_and_go_together_where_recipes_are_near(sound: Study) -> None:
    recipes = [trajectory("cosine", 3e-4), trajectory("cosine", 3.1e-4), trajectory("wsd", 5e-4)]
    drawn = sound.draws(recipes, 4000, np.random.default_rng(0))
    assert drawn.shape == (4000, 3, 2)
    for column, side in enumerate(sound.sides.values()):
        for row, of in enumerate(recipes):
            loss, scale = drawn[:, row, column], side.scale
            band = side.predict(of, np.array([len(of.lr)]))
            own = np.log(band.high / band.loss)[0] ** 2 - (1.645 * scale.jitter) ** 2
            low, high = np.quantile(loss, [0.05, 0.95])
            assert np.log(high / low) / 2 == pytest.approx(np.sqrt(own), rel=0.1)
            assert np.median(loss) == pytest.approx(band.loss[0], rel=0.003)
        near, far = (np.corrcoef(drawn[:, i, column], drawn[:, j, column])[0, 1] for i, j in ((0, 1), (0, 2)))
        assert near > far
