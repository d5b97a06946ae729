from __future__ import annotations

import math

import numpy as np
import pytest

from rewarm.runs.metrics import Metrics
from rewarm.runs.summary import best_stop, crossing, rewarming, summarize


def scored(upstream: list[float], downstream: list[float]) -> Metrics:
    steps = np.arange(len(upstream), dtype=np.float64)
    losses = {"upstream/loss": np.array(upstream), "downstream/loss": np.array(downstream)}
    return Metrics({"step": steps, "tokens": 100 * steps, **losses})


def test_a_gap_has_a_height_a_time_and_a_length() -> None:
    figures = rewarming(np.array([0.0, 100, 200, 300, 400]), np.array([2.0, 2.0, 2.4, 2.2, 1.8]))
    assert figures["gap_height"] == pytest.approx(0.4)
    assert figures["peak_tokens"] == 200
    assert figures["recovered_tokens"] == pytest.approx(350)
    assert figures["gap_length"] == pytest.approx(250), "it left its start after 100 tokens"
    assert figures["area"] == pytest.approx(100 * (2.0 + 2.2 + 2.3 + 2.0))


def test_a_loss_that_never_comes_back_has_no_length() -> None:
    figures = rewarming(np.array([0.0, 100, 200]), np.array([2.0, 2.4, 2.1]))
    assert (figures["recovered_tokens"], figures["gap_length"]) == (None, None)


def test_a_loss_that_never_rises_has_no_gap() -> None:
    figures = rewarming(np.array([0.0, 100]), np.array([2.0, 1.5]))
    assert (figures["gap_height"], figures["recovered_tokens"], figures["gap_length"]) == (0.0, None, None)


def test_a_crossing_lies_between_two_points() -> None:
    tokens, loss = np.array([0.0, 10, 20]), np.array([3.0, 2.0, 1.0])
    assert crossing(tokens, loss, 1.5, 0) == pytest.approx(15)
    assert crossing(tokens, loss, 0.5, 0) is None
    assert crossing(tokens, loss, 3.0, 0) == 0


def test_the_summary_weighs_both_sides() -> None:
    summary = summarize(scored([2.0, 2.3, 2.1], [3.0, 2.5, 2.6]))
    assert summary["upstream"]["forgetting"] == pytest.approx(0.1)
    assert summary["upstream"]["peak_forgetting"] == pytest.approx(0.3)
    assert summary["downstream"]["change"] == pytest.approx(-0.4)
    assert summary["gain_per_loss"] == pytest.approx(4.0)
    assert summary["best_stop"] == {"tokens": 200, "upstream": 2.1, "downstream": 2.6}


def test_nothing_lost_has_no_price() -> None:
    assert summarize(scored([2.0, 1.9], [3.0, 2.5]))["gain_per_loss"] is None


def test_losses_that_are_not_finite_are_passed_over() -> None:
    summary = summarize(scored([2.0, math.nan, 2.1], [3.0, math.inf, 2.5]))
    assert summary["upstream"]["peak"] == 2.1
    assert summarize(scored([math.nan], [math.nan]))["upstream"]["final"] is None
    assert best_stop(scored([math.nan], [2.0])) is None
