import numpy as np
import pytest

from rewarm.forecast.features import features, stack, units_of
from rewarm.forecast.history import Pretraining
from rewarm.forecast.laws import LAWS, REPLAY_TERMS, Form, paper_units, visible
from tests.forecast.synthetic import FINAL_LR, TOKENS_PER_STEP, TRUTH, UNITS, trajectory

STEPS = np.array([0, 1, 5, 20, 100, 900, 2000])


def _values(extra: dict[str, float] | None = None) -> dict[str, float]:
    return TRUTH["downstream"] | TRUTH["shapes"] | {"C1": 0.1} | (extra or {})


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("replay_term", [None, *REPLAY_TERMS])
def test_derivatives_are_those_of_the_loss(law: str, history: bool, replay_term: str | None) -> None:  # noqa: FBT001
    runs = [trajectory("cosine", 6e-4, replay=0.1), trajectory("wsd", 3e-4)]
    if history:
        past = Pretraining(((np.linspace(1e-3, FINAL_LR, 500), TOKENS_PER_STEP),))
        runs = [type(r)(r.lr, r.tokens_per_step, r.start_lr, replay=r.replay, pretraining=past) for r in runs]
    points = stack([features(run, STEPS, UNITS) for run in runs])
    bound = Form(law, history, history, replay_term).bind(points, UNITS)
    values = {name: _values()[name] for name in bound.coefficients + bound.shapes}
    loss, slopes = bound.loss(values)
    assert np.isfinite(loss).all()
    for row, name in zip(slopes, bound.coefficients + bound.shapes, strict=True):
        tiny = 1e-5
        up, down = dict(values), dict(values)
        if name in bound.shapes:
            up[name], down[name] = values[name] * np.exp(tiny), values[name] * np.exp(-tiny)
        else:
            up[name], down[name] = values[name] + tiny, values[name] - tiny
        wanted = (bound.loss(up)[0] - bound.loss(down)[0]) / (2 * tiny)
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-7), name


def test_the_continual_law_is_the_published_formula_in_the_papers_units() -> None:
    run = trajectory("wsd", 5e-4, steps=300)
    units = units_of([run])
    points = features(run, np.array([300]), units)
    bound = Form("cpt", history_known=False, histories_differ=False, replay_term=None).bind(points, units)
    memory = float(units.memories[6])
    mine = {
        "L0": 2.0,
        "A": 0.4,
        "C": 0.3,
        "B": -0.6,
        "alpha": 0.5,
        "S_pt": 2.0,
        "memory": memory,
        "E": 30,
        "beta": 0.2,
    }
    p = paper_units(mine, units, TOKENS_PER_STEP)
    path = np.concatenate([[run.start_lr], run.lr])
    s2 = sum((path[k - 1] - path[k]) * p["lambda"] ** (i - k) for i in range(1, len(path)) for k in range(1, i + 1))
    s1 = run.lr.sum()
    wanted = (
        p["L0"]
        + p["A"] * (p["S_pt"] + s1) ** -p["alpha"]
        - p["C"] * s2
        + p["B"] * (1 - (1 + p["E"] * s1) ** -p["beta"])
    )
    assert bound.loss(mine)[0][0] == pytest.approx(wanted, rel=1e-9)


def test_the_multi_power_law_is_the_published_formula_but_for_gathering_changes() -> None:
    lr = np.concatenate([np.full(300, 6e-4), np.linspace(6e-4, 6e-5, 300)])
    run = type(trajectory("constant", 1e-3))(lr, TOKENS_PER_STEP, 6e-4)
    units = units_of([run])
    bound = Form("multipower", history_known=False, histories_differ=False, replay_term=None).bind(
        features(run, np.array([600]), units), units
    )
    mine = {"L0": 2.0, "A": 0.4, "C": 0.3, "alpha": 0.5, "S_pt": 0.1, "G": 2.0, "gamma": 0.4, "delta": 0.7}
    p = paper_units(mine, units, TOKENS_PER_STEP)
    total = 0.0
    for k in range(1, 600):
        reach = p["G"] * lr[k] ** -p["gamma"] * lr[k:].sum()
        total += (lr[k - 1] - lr[k]) * (1 - (1 + reach) ** -p["delta"])
    wanted = p["L0"] + p["A"] * (p["S_pt"] + lr.sum()) ** -p["alpha"] - p["C"] * total
    assert p["C"] * total > 0.03
    assert bound.loss(mine)[0][0] == pytest.approx(wanted, abs=1e-3)


def test_same_data_has_no_shift_term() -> None:
    run = trajectory("cosine", 6e-4)
    same = type(run)(run.lr, run.tokens_per_step, run.start_lr, shifted=False)
    form = Form("cpt", history_known=False, histories_differ=False, replay_term=None)
    with_shift = form.bind(features(same, STEPS, UNITS), UNITS).loss(_values())[0]
    without = form.bind(features(same, STEPS, UNITS), UNITS).loss(_values({"B": 0.0}))[0]
    assert with_shift.tolist() == without.tolist()


@pytest.mark.parametrize("kind", REPLAY_TERMS)
def test_replay_hides_more_of_the_shift_the_more_there_is(kind: str) -> None:
    share, _ = visible(kind, np.array([0.0, 0.01, 0.05, 0.5]), 0.3)
    assert share[0] == 1
    assert (np.diff(share) < 0).all()
    assert (share > 0).all()
