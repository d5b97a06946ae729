"""Whatever stands on the command line gives a valid plan or one clear line and exit code 2; never a traceback."""

from __future__ import annotations

import random
import string
from collections import Counter
from dataclasses import fields, is_dataclass

import pytest

from rewarm.commands.begin import begin
from rewarm.config.plan import Plan
from rewarm.config.schema import Config
from rewarm.errors import RewarmError

PARTS, STRINGS = 8, 45
"""Parts of the fuzz, which workers share, and the strings of each."""
VALUES = (
    *("0", "1", "-1", "0.5", "1e-3", "1e308", "1e999", "nan", "inf", "-inf", "1e-400", "00", "0x10", "1_000", "٣"),
    *("true", "False", "null", "None", "~", "", "''", '""', "'", '"', "\\", "a b", "a=b", "a,b", "1,2", "[", "]"),
    *("[]", "[1,2]", "[1,[2]]", "{}", "{a:1}", "{a:{b:2}}", "{kind:files}", "{", "}", "(", ")", "${max_lr}", "${x}"),
    *("${oc.env:HOME}", "${oc.env:NO_SUCH}", "${times:1,2}", "${times:a}", "$", "%", "@", "!", "#", "/", "../.."),
    *("50M", "1.5B", "2e9", "12q", "M", "1e-9T", "cosine", "wsd", "scratch", "builtin@9", "run@-1", "cpu", "fp8"),
    *("range(1,3)", "choice(a,b)", "interval(0,1)", "glob(*)", "sort(3,1)", "int(x)", "float(3)", "x" * 300, "☃"),
)


def _keys(group: type, prefix: str = "") -> list[str]:
    found = []
    for f in fields(group):
        found.append(prefix + f.name)
        default = f.default_factory() if callable(f.default_factory) else None  # type: ignore[misc]
        if is_dataclass(default):
            found += _keys(type(default), f"{prefix}{f.name}.")
    return found


KEYS = (*_keys(Config), "scale", "hydra.job.chdir", "hydra.sweep.dir", "schedule@x", "data/x", "experiment", "nope")
SPECIAL = (
    *("", "=", "==", "=1", "x", "-", "--", "---x", "-z", "--nope=1"),
    *("~max_lr", "~nope", "~", "+", "++", "+=1", "++x=1", "\x00"),
)


def _string(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(SPECIAL)
    if kind < 0.12:
        return "".join(rng.choice(string.printable) for _ in range(rng.randrange(1, 25)))
    key = rng.choice(KEYS)
    if rng.random() < 0.08:
        position = rng.randrange(len(key))
        key = key[:position] + rng.choice(string.ascii_letters + ".") + key[position + 1 :]
    if rng.random() < 0.08:
        key = rng.choice(("+", "++", "~", "@", ".", " ")) + key
    return f"{key}={rng.choice(VALUES)}"


Answer = Plan | tuple[int, str]


def answer(override: str) -> Answer:
    """Return what `rewarm train` with an override gives: a plan, or exit code and message."""
    try:
        asked = begin("train", ("run_dir=unused", override))
    except RewarmError as error:
        return error.exit_code, str(error)
    assert asked is not None
    return asked.plan


@pytest.mark.parametrize("part", range(PARTS))
def test_random_overrides_give_a_plan_or_one_line(part: int) -> None:
    rng = random.Random(part)
    outcomes: Counter[str] = Counter()
    for _ in range(STRINGS):
        override = _string(rng)
        found = answer(override)
        if isinstance(found, Plan):
            assert found.steps >= 1
            outcomes["planned"] += 1
            continue
        code, line = found
        key = " ".join(override.splitlines()).split("=")[0].lstrip("+~").split("@")[0]
        assert code == 2, (override, line)
        assert "\n" not in line, (override, line)
        # Other keys follow those of an experiment, or close a circle of interpolations, and are named instead.
        if not key.startswith("experiment.") and "Recursive interpolation" not in line:
            assert any(part in line for part in key.split(".")), (override, line)
        outcomes["refused"] += 1
    assert outcomes["refused"] > STRINGS / 2
    assert outcomes["planned"] > 0
