from __future__ import annotations

from dataclasses import replace

import torch

from rewarm.runs.manifest import Chosen, Conditions, Manifest
from rewarm.training.exactness import changed, conditions, kept_threads


def test_a_run_that_goes_on_keeps_its_threads_unless_others_are_asked_for_or_there_are_fewer_cores() -> None:
    assert kept_threads(None, 1, {}) == 1
    assert kept_threads(None, None, {}) is None
    assert kept_threads(2, 1, {}) == 2
    assert kept_threads(None, 1, {"OMP_NUM_THREADS": "2"}) is None
    assert kept_threads(None, 100_000, {}) is None


def test_the_cpu_counts_where_it_computes_and_what_was_not_recorded_counts_as_the_same() -> None:
    now = conditions(torch.device("cpu"))

    def found(before: Conditions, now: Conditions) -> set[str]:
        return set(changed(Manifest(conditions=before), Manifest(conditions=now)))

    assert found(now, now) == set()
    assert found(Conditions(rewarm=now.rewarm), now) == set()
    before = replace(now, threads=(now.threads or 0) + 1, cpu="another", torch="2.0")
    assert found(before, now) == {"threads", "cpu", "torch"}
    assert found(replace(before, device="NVIDIA H100"), replace(now, device="NVIDIA H100")) == {"torch"}
    chosen = [Manifest(chosen=Chosen("bf16", size), conditions=now) for size in (4, 2)]
    assert changed(*chosen) == {"micro_batch_size": [4, 2]}
