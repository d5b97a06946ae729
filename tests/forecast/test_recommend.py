from dataclasses import replace

import numpy as np
import pytest

from rewarm.errors import UserError
from rewarm.forecast.candidates import candidates
from rewarm.forecast.coverage import fallen
from rewarm.forecast.curves import Curve
from rewarm.forecast.fitted import Study, study
from rewarm.forecast.judge import judge
from rewarm.forecast.options import Options
from rewarm.forecast.recommend import (
    Outcome,
    Recommendation,
    arms_of,
    check_sides,
    outcomes,
    pareto,
    recommend,
    start_losses,
)
from tests.conftest import make_config
from tests.forecast.synthetic import TOKENS_PER_STEP, arms, curve, losses, trajectory

WHOLE = round(2000 * TOKENS_PER_STEP)
"""Tokens of each arm."""


def _options(**given: object) -> Options:
    return Options(paths=(), **given)


def _advice(of: Study, **given: object) -> tuple[Recommendation, list[Outcome]]:
    options = _options(**given)
    found = outcomes(of, candidates(options, of.fitted, search=True))
    return recommend(of, found, options, judge(of).faults), found


def _true(outcome: Outcome, side: str) -> float:
    candidate = outcome.candidate
    return float(losses("cpt", candidate.trajectory, side, np.array([candidate.steps]))[0])


def test_the_advice_is_sure_to_keep_to_the_limit_and_learns_best_within_it(sound: Study) -> None:
    """The limit is one that half of the trainings keep to with the upper ends of their bands."""
    start = start_losses(sound)["upstream"]
    _, found = _advice(sound, weights=(0.0, 1.0))
    inside = [o for o in found if not o.candidate.beyond]
    limit = float(np.median([o.sides["upstream"].high[-1] for o in inside])) - start
    advice, _ = _advice(sound, max_forgetting=limit)
    within = [o for o in inside if o.sides["upstream"].high[-1] - start <= limit]
    best = min(o.final("downstream") for o in within)
    assert len(within) < len(inside)
    if advice.chosen is None:
        assert advice.arm is not None
        assert advice.arm.finals["upstream"] - start <= limit
        assert best > advice.arm.finals["downstream"] - advice.error
    else:
        assert advice.chosen.final("upstream") - start < limit
        assert advice.chosen.final("downstream") == best
        assert advice.arm is None or best <= advice.arm.finals["downstream"] - advice.error


def test_the_advice_is_nearly_the_best_by_the_true_law(sound: Study) -> None:
    advice, found = _advice(sound, weights=(1.0, 1.0))
    best = min(sum(_true(o, side) for side in o.sides) for o in found if not o.candidate.beyond)
    if advice.chosen:
        got = sum(_true(advice.chosen, side) for side in advice.chosen.sides)
    else:
        assert advice.arm is not None
        got = sum(advice.arm.finals.values())
    assert got <= 1.005 * best


def test_a_share_of_the_loss_may_bound_forgetting(sound: Study) -> None:
    advice, _ = _advice(sound, max_forgetting=0.01, forgetting_is_share=True)
    assert advice.goal.limit == pytest.approx(0.01 * start_losses(sound)["upstream"])
    assert f"loses at most {advice.goal.limit:.4g} nats upstream" in str(advice.goal)


def test_what_the_runs_have_not_seen_is_never_recommended(sound: Study) -> None:
    advice, found = _advice(sound, weights=(0.0, 1.0), max_lr=(1e-3,), schedule=("cosine", "infinite_cosine"))
    assert found
    assert advice.take == "measured"
    assert advice.reason == "nothing that was asked for lies inside what the runs cover"


def test_the_measured_arm_is_the_advice_where_nothing_is_sure_to_beat_it(sound: Study) -> None:
    """Asked for an arm's own settings alone, the forecast can do no better than to give that arm."""
    advice, _ = _advice(sound, weights=(0.0, 1.0), max_lr=(6e-4,), schedule=("cosine",), budget=(WHOLE,))
    assert advice.take == "measured"
    assert advice.arm is not None
    assert advice.arm.label == "high"
    assert "the forecast errs by" in advice.reason


def test_an_arm_that_took_more_tokens_or_other_replay_than_asked_for_is_not_the_advice(sound: Study) -> None:
    for asked in ({"budget": (WHOLE // 2,)}, {"replay": (0.25,)}):
        advice, _ = _advice(sound, weights=(0.0, 1.0), **asked)
        assert advice.arm is None


def test_a_forecast_that_is_not_reliable_advises_no_training_but_names_the_best_arm(sound: Study) -> None:
    options = _options(weights=(0.0, 1.0))
    found = outcomes(sound, candidates(options, sound.fitted, search=True))
    advice = recommend(sound, found, options, ["anything"])
    assert advice.chosen is None
    assert advice.arm is not None
    assert advice.arm.finals["downstream"] == min(arm.finals["downstream"] for arm in arms_of(sound.curves))
    assert advice.reason == "the forecast is not reliable, see below"


def test_runs_that_were_stopped_early_advise_no_annealing() -> None:
    """Four arms cut at a tenth of their cosine: whatever is advised has an LR as flat as theirs was."""
    runs = []
    for lr in (1e-4, 3e-4, 6e-4, 1e-3):
        whole = trajectory("cosine", lr)
        cut = replace(whole, lr=whole.lr[:200])
        runs.append(curve(f"{lr:g}", cut, noise=0.001))
    result = study(runs, _options())
    annealed = _options(schedule=("cosine", "wsd"), max_lr=(5e-4,))
    assert all(
        candidate.withheld and "no run's by more than 2%" in candidate.withheld
        for candidate in candidates(annealed, result.fitted, search=False)
    )
    advice, _ = _advice(result, weights=(0.0, 1.0))
    assert advice.chosen is None or fallen(advice.chosen.candidate.trajectory.lr) < 0.12
    assert advice.arm is not None


def test_a_training_that_betters_nothing_is_not_advised(sound: Study) -> None:
    """The model had a downstream loss before any update that no run came down to."""
    low = [
        replace(c, losses={side: (steps, np.r_[1.0, loss[1:]]) for side, (steps, loss) in c.losses.items()})
        for c in sound.fitted
    ]
    advice, _ = _advice(replace(sound, fitted=low), weights=(0.0, 1.0))
    assert advice.take == "nothing"
    assert advice.arm is not None
    assert advice.reason.startswith(
        "no arm that was run keeps to it and betters the model as it was, and the best of"
    )


def test_seeds_are_one_arm_and_unfinished_runs_none() -> None:
    a, b = (curve("a", trajectory("cosine", 3e-4), seed=seed) for seed in (0, 1))
    young = replace(curve("young", trajectory("cosine", 6e-4)), planned_steps=4000)
    [arm] = arms_of([a, replace(b, name="b", arm="a"), young])
    assert arm.label == "a (2 seeds)"
    wanted = np.mean([c.losses["upstream"][1][-1] for c in (a, b)])
    assert arm.finals["upstream"] == pytest.approx(wanted)


def test_runs_from_another_checkpoint_are_no_arms_of_this_one() -> None:
    """An earlier checkpoint has other losses before, from which forgetting would be told wrong."""
    now = [curve(f"{lr:g}", trajectory("cosine", lr)) for lr in (1e-4, 3e-4)]
    now = [replace(c, config=make_config("init=builtin")) for c in now]
    earlier = replace(curve("early", trajectory("cosine", 2e-4)), config=make_config("init=builtin@loss3.5"))
    assert [arm.label for arm in arms_of([earlier, *now])] == ["0.0001", "0.0003"]


def test_no_point_of_the_front_is_beaten_on_both_losses(sound: Study) -> None:
    _, found = _advice(sound, weights=(1.0, 1.0))
    front = pareto(found)
    for kept in front:
        assert not any(
            o.final("upstream") < kept.final("upstream") and o.final("downstream") < kept.final("downstream")
            for o in found
        )
    assert 0 < len(front) < len(found)


def test_a_recommendation_needs_both_losses() -> None:
    runs = [Curve(c.name, c.arm, c.trajectory, {"pile": c.losses["upstream"]}, 2000) for c in arms()[:2]]
    with pytest.raises(UserError, match=r"there is no upstream \(found: pile\)"):
        check_sides(study(runs, Options(paths=())))
