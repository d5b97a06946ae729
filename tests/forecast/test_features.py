import numpy as np
import pytest

from rewarm.forecast.curves import Trajectory
from rewarm.forecast.features import Remembered, features, remembered_drop, stack, units_of
from rewarm.forecast.history import Pretraining
from tests.forecast.synthetic import trajectory


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_s2_equals_the_double_sum_that_defines_it(decay: float) -> None:
    lr = trajectory("cosine", 3e-4, steps=120, warmup=0.1).lr
    start = 3e-5
    path = np.concatenate([[start], lr])
    wanted = sum((path[k - 1] - path[k]) * decay ** (i - k) for i in range(1, len(path)) for k in range(1, i + 1))
    memory = -1 / np.log(decay)
    got = remembered_drop(lr, start, memory, np.array([len(lr)]))[0] / (1 - decay)
    assert got == pytest.approx(wanted, rel=1e-9)


def test_nothing_has_dropped_before_the_first_update() -> None:
    assert remembered_drop(np.full(5, 1e-3), 1e-4, 10.0, np.array([0]))[0] == 0


def test_a_drop_long_ago_is_felt_in_full_and_one_just_now_not_yet() -> None:
    lr = np.concatenate([np.full(500, 1e-3), np.full(500, 1e-4)])
    drop = remembered_drop(lr, 1e-3, 20.0, np.array([500, 501, 1000]))
    assert drop[0] == 0
    assert 0 < drop[1] < 0.1 * 9e-4
    assert drop[2] == pytest.approx(9e-4, rel=1e-9)


def test_area_counts_tokens_so_that_half_the_batch_for_twice_the_steps_is_the_same() -> None:
    coarse = Trajectory(np.full(100, 1e-3), 2000.0, 1e-3)
    fine = Trajectory(np.full(200, 1e-3), 1000.0, 1e-3)
    units = units_of([coarse, fine])
    a, b = features(coarse, np.array([50]), units), features(fine, np.array([100]), units)
    assert a.area == pytest.approx(b.area)
    assert a.area[0] == pytest.approx(0.5)


def test_history_adds_its_area_and_its_drops() -> None:
    past = np.linspace(1e-3, 1e-4, 300)
    known = Trajectory(np.full(100, 1e-4), 10.0, 1e-4, pretraining=Pretraining(((past, 20.0),)))
    units = units_of([known])
    got = features(known, np.array([0, 100]), units)
    assert got.area_before * units.area == pytest.approx(past.sum() * 20)
    wanted = remembered_drop(past, 0.0, units.memories[3] / 20, np.array([300]))[0]
    assert got.drop_before[3] * units.lr == pytest.approx(wanted)


def test_unknown_history_is_not_taken_for_none() -> None:
    unknown = trajectory("cosine", 3e-4)
    assert np.isnan(features(unknown, np.array([1]), units_of([unknown])).area_before).all()


def test_the_spline_between_memories_is_close_to_the_filter() -> None:
    of = trajectory("wsd", 3e-4)
    units = units_of([of])
    steps = np.arange(0, 2001, 50)
    table = Remembered(units, features(of, steps, units).drop)
    for memory in np.geomspace(5, 1500, 17):
        exact = remembered_drop(of.lr, of.start_lr, memory, steps) / units.lr
        assert table(np.log(memory * of.tokens_per_step))[0] == pytest.approx(exact, abs=2e-3)


def test_blocks_keep_the_whole_change_of_the_lr() -> None:
    of = trajectory("infinite_cosine", 3e-4)
    units = units_of([of])
    got = features(of, np.array([2000]), units)
    assert got.block_drop.sum() * units.lr == pytest.approx(of.start_lr - of.lr[-1])
    assert (got.block_area >= 0).all()


def test_stacked_points_keep_their_order() -> None:
    a, b = trajectory("cosine", 3e-4), trajectory("cosine", 6e-4, replay=0.1)
    units = units_of([a, b])
    joined = stack([features(a, np.array([1, 2]), units), features(b, np.array([3]), units)])
    assert len(joined) == 3
    assert joined.replay.tolist() == [0, 0, 0.1]
    assert joined.drop.shape == (len(units.memories), 3)
