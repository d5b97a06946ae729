from __future__ import annotations

from itertools import islice

import pytest

from rewarm.data.builtin import BuiltinSource, interleave
from rewarm.errors import UserError

WEAK = {"prose": 0.6, "code": 0.4}
WEIGHTS = {"upstream": WEAK, "downstream": {"prose": 0.1, "code": 0.9}}


@pytest.fixture(scope="module")
def texts() -> dict[tuple[str, str], list[str]]:
    return {
        (side, split): [d.text for d, _ in BuiltinSource(side, split, WEIGHTS[side]).documents(None)]
        for side in ("upstream", "downstream")
        for split in ("train", "validation")
    }


def test_no_document_stands_in_two_parts_or_twice_in_one(texts: dict[tuple[str, str], list[str]]) -> None:
    together = [text for part in texts.values() for text in part]
    assert len(set(together)) == len(together)


def test_there_is_enough_text_of_each_part(texts: dict[tuple[str, str], list[str]]) -> None:
    for (_, split), part in texts.items():
        assert sum(map(len, part)) > (10_000_000 if split == "train" else 300_000)


def test_the_shares_of_the_domains_hold_all_the_way_through() -> None:
    characters = dict.fromkeys(WEAK, 0)
    for number, (document, _) in enumerate(BuiltinSource("upstream", "train", WEAK).documents(None), start=1):
        characters[document.domain] += len(document.text)
        if number % 1000 == 0:
            assert characters["prose"] / sum(characters.values()) == pytest.approx(0.6, abs=0.02)


def test_a_cursor_continues_where_it_was_taken() -> None:
    source = BuiltinSource("upstream", "validation", WEAK)
    everything = list(source.documents(None))
    for at in (1, 17, len(everything)):
        assert list(source.documents(everything[at - 1][1])) == everything[at:]


def test_code_and_prose_are_what_they_say() -> None:
    documents = [d for d, _ in islice(BuiltinSource("downstream", "train", WEAK).documents(None), 400)]
    code = [d.text for d in documents if d.domain == "code"]
    prose = [d.text for d in documents if d.domain == "prose"]
    assert sum("def " in text or "class " in text for text in code) > 0.8 * len(code)
    assert sum("    return " in text for text in prose) < 0.1 * len(prose)


def test_interleaving_stops_when_a_domain_is_exhausted() -> None:
    pools = {"a": ["x" * 10] * 100, "b": ["y" * 10] * 5}
    given = [d.domain for d in interleave(pools, {"a": 1, "b": 1}, 10_000)]
    assert given.count("b") == 5
    assert 5 <= given.count("a") <= 6


@pytest.mark.parametrize("weights", [{"prosa": 1.0}, {"prose": 0.0}, {"prose": 1.0, "code": -1.0}])
def test_impossible_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"data\.upstream\.weights"):
        BuiltinSource("upstream", "train", weights)
