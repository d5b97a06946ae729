from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rewarm.data.batches import Batches, BatchSpec, Windows
from rewarm.data.store import TokenStore
from rewarm.errors import DataError
from tests.conftest import make_documents, make_store

CONTEXT = 16


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("stores")
    found = {
        "downstream": make_store(folder, make_documents(150, seed=1), name="new"),
        "upstream": make_store(folder, make_documents(150, seed=2), name="old"),
    }
    for store in found.values():
        store.ensure(10**9)
    return found


def batches(stores: dict[str, TokenStore], **changes: float) -> Batches:
    options = {"batch_size": 8, "context": CONTEXT, "seed": 0, "shuffle_window": 32} | changes
    return Batches(BatchSpec(**options), stores["downstream"], stores["upstream"])  # type: ignore[arg-type]


def n_windows(store: TokenStore) -> int:
    return (store.n_tokens - 1) // CONTEXT


def test_an_epoch_holds_every_window_once_and_the_next_in_another_order(stores: dict[str, TokenStore]) -> None:
    store = stores["downstream"]
    windows = Windows(store, CONTEXT, seed=3, shuffle_window=32)
    count = n_windows(store)
    first = windows.numbers(0, count).tolist()
    second = windows.numbers(count, count).tolist()
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second
    assert first != sorted(first)


def test_the_order_is_shuffled_within_the_window_only(stores: dict[str, TokenStore]) -> None:
    windows = Windows(stores["downstream"], CONTEXT, seed=3, shuffle_window=32)
    for sequence in range(n_windows(stores["downstream"])):
        assert int(windows.numbers(sequence, 1)[0]) // 32 == sequence // 32


def test_rows_are_windows_of_the_store_that_overlap_by_one_token(stores: dict[str, TokenStore]) -> None:
    store = stores["downstream"]
    windows = Windows(store, CONTEXT, seed=3, shuffle_window=32)
    whole = store.read(0, store.n_tokens)
    for sequence in range(40):
        start = int(windows.numbers(sequence, 1)[0]) * CONTEXT
        assert windows.read(sequence, 1)[0].tolist() == whole[start : start + CONTEXT + 1].tolist()


def test_any_step_can_be_asked_for_in_any_order(stores: dict[str, TokenStore]) -> None:
    ascending = {step: batches(stores)[step].tolist() for step in range(1, 30)}
    anew = batches(stores)
    for step in (29, 3, 17, 1, 29):
        assert anew[step].tolist() == ascending[step]


def test_another_seed_gives_another_order(stores: dict[str, TokenStore]) -> None:
    assert batches(stores, seed=1)[1].tolist() != batches(stores, seed=2)[1].tolist()


def test_rows_of_a_part_equal_those_of_the_whole(stores: dict[str, TokenStore]) -> None:
    made = batches(stores, replay=0.3)
    for step in (1, 2, 7):
        parts = np.concatenate([made.rows(step, 0, 3), made.rows(step, 3, 4), made.rows(step, 4, 8)])
        assert parts.tolist() == made[step].tolist()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5, 0.999])
def test_replay_takes_its_share_exactly_over_the_run(share: float) -> None:
    spec = BatchSpec(batch_size=8, context=CONTEXT, seed=0, shuffle_window=32, replay=share)
    steps = 1000
    a_step = [spec.replayed(t) - spec.replayed(t - 1) for t in range(1, steps + 1)]
    assert sum(a_step) == pytest.approx(share * 8 * steps, abs=0.5)
    assert max(a_step) - min(a_step) <= 1


def test_replay_reads_upstream_in_its_own_order_and_skips_nothing_of_downstream(
    stores: dict[str, TokenStore],
) -> None:
    made = batches(stores, replay=0.25)
    plain = batches(stores)
    old = stores["upstream"].read(0, stores["upstream"].n_tokens)
    seen_old = [row.tolist() for step in range(1, 9) for row in made[step][:2]]
    assert seen_old == [old[i * CONTEXT : (i + 1) * CONTEXT + 1].tolist() for i in range(16)]
    seen_new = [row.tolist() for step in range(1, 9) for row in made[step][2:]]
    assert seen_new == [row.tolist() for step in range(1, 7) for row in plain[step]]


def test_all_tokens_of_an_epoch_are_predicted_once(stores: dict[str, TokenStore]) -> None:
    store = stores["downstream"]
    windows = Windows(store, CONTEXT, seed=0, shuffle_window=32)
    count = n_windows(store)
    predicted = Counter(
        position
        for number in windows.numbers(0, count).tolist()
        for position in range(number * CONTEXT + 1, (number + 1) * CONTEXT + 1)
    )
    assert set(predicted) == set(range(1, count * CONTEXT + 1))
    assert set(predicted.values()) == {1}


def test_text_too_short_for_one_sequence_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, make_documents(1))
    with pytest.raises(DataError, match="has not the 1001 tokens of one sequence"):
        Windows(store, 1000, 0, 4).numbers(0, 1)
