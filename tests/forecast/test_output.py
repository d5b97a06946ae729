from dataclasses import replace

import pytest

from rewarm.forecast.averages import averages_of
from rewarm.forecast.candidates import candidates
from rewarm.forecast.fitted import Study
from rewarm.forecast.judge import judge
from rewarm.forecast.options import Options
from rewarm.forecast.output import Findings, as_json, text
from rewarm.forecast.recommend import Recommendation, outcomes, recommend, start_losses


def _findings(of: Study, **given: object) -> Findings:
    options = Options(paths=(), **given)
    found = outcomes(of, candidates(options, of.fitted, search=True))
    advice = recommend(of, found, options, judge(of).faults) if options.recommends else None
    asked = candidates(options, of.fitted, search=False) if options.predicts else []
    withheld = [candidate for candidate in asked if candidate.withheld]
    averages = averages_of(of)
    return Findings(of, judge(of), outcomes(of, asked), [], withheld, found, [], advice, start_losses(of), averages)


def _advice(findings: Findings) -> Recommendation:
    assert findings.recommendation is not None
    return findings.recommendation


def test_the_answer_comes_first_and_parameters_only_where_asked_for(sound: Study) -> None:
    findings = _findings(sound, weights=(1.0, 1.0), max_lr=(2e-4, 4e-4))
    said = text(findings)
    assert said.lstrip().startswith("Recommended (least 1 upstream + 1 downstream loss): ")
    assert said.index("because") < said.index("trust") < said.index("measured") < said.index("law cpt, fitted to")
    assert "; if taken from the nearest run by " in said
    assert "the best arm that was run" in said
    assert f"upstream {findings.start['upstream']:.4f}, " in said.split("before")[1]
    assert "condition" not in said
    assert "condition" in text(findings, verbose=True)


def test_what_happens_to_the_old_data_is_said_in_words(sound: Study) -> None:
    findings = _findings(sound, weights=(0.0, 1.0))
    arm = _advice(findings).arm
    assert arm is not None
    loss = arm.finals["upstream"] - start_losses(sound)["upstream"]
    assert f"the old data {'loses' if loss > 0 else 'gains'} {abs(loss):.4f} nats" in text(findings)
    assert "gains 0.5400 nats" in text(replace(findings, start={"upstream": arm.finals["upstream"] + 0.54}))


def test_no_recommendation_says_why_and_what_was_measured(sound: Study) -> None:
    said = text(_findings(sound, max_forgetting=0.0, schedule=("constant",), max_lr=(6e-4,)))
    assert said.lstrip().startswith("No recommendation (least downstream loss that loses at most 0 nats upstream)")
    assert "nothing that was asked for lies inside what the runs cover" in said
    assert "no arm that was run to its end keeps to it" in said


@pytest.mark.parametrize("side", ["upstream", "downstream"])
def test_a_parameter_lies_inside_its_own_interval(sound: Study, side: str) -> None:
    for name, (value, low, high) in sound.sides[side].intervals(sound.tokens_per_step).items():
        assert low <= value <= high, name


def test_json_tells_the_best_measured_arm_beside_the_advice(sound: Study) -> None:
    findings = _findings(sound, weights=(0.0, 1.0))
    content = as_json(findings, [])["recommendation"]
    arm = _advice(findings).arm
    assert arm is not None
    measured = {"runs": [c.name for c in arm.curves], "average": None, "sets": arm.finals}
    assert content["measured"] == measured
