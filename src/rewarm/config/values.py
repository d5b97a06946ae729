"""From what YAML, the command line or a saved run gives to the typed values of a config, each within its bounds.

A field says in its annotation what it takes: `warmup: Annotated[float, Within(0, 1)]`. `build` makes a dataclass out
of plain mappings by these annotations, and `docs/reference.md` prints them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from rewarm.errors import UserError, choice, nearest

MISSING: Any = "???"
"""The default of a field that must be given; OmegaConf and Hydra write it so too."""
MOST_TOKENS = 10**15
LONGEST_SHOWN = 80
"""Characters of a value that an error shows."""
T = TypeVar("T")


def number_text(number: float) -> str:
    """Return a number as people read it: 1,000,000 or 1e-12."""
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def value_text(value: object) -> str:
    """Return a value as it is written on the command line, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


NOUNS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Within:
    """The bounds of a number, both of them allowed; `below` is one that is not."""

    least: float
    most: float = math.inf
    below: float = math.inf
    note: str = ""
    """What it is, or an example, for the error: `such as 6e-4`."""

    def text(self, kind: type) -> str:
        """Return what the values are: `a number from 0 to 1`."""
        end = f"to {number_text(self.most)}" if self.below == math.inf else f"to below {number_text(self.below)}"
        return f"{NOUNS[kind]} from {number_text(self.least)} {end}" + (f", {self.note}" if self.note else "")

    def allows(self, value: Any) -> bool:  # noqa: ANN401 - a value of the field's own type, as in all rules
        """Return whether a value lies within the bounds. NaN lies in none."""
        return bool(self.least <= value <= self.most and value < self.below)


@dataclass(frozen=True)
class Text:
    """What a text must look like: a pattern, and the pattern in words."""

    pattern: str
    words: str

    def text(self, kind: type) -> str:  # noqa: ARG002 - as in all rules
        """Return what the values are."""
        return self.words

    def allows(self, value: Any) -> bool:  # noqa: ANN401
        """Return whether a text is of this form."""
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None


class Choice:
    """One of several names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def text(self, kind: type) -> str:  # noqa: ARG002 - as in all rules
        """Return what the values are."""
        return "one of " + ", ".join(self.names)

    def allows(self, value: Any) -> bool:  # noqa: ANN401
        """Return whether a name is among them."""
        return value in self.names


@dataclass(frozen=True)
class TokenCount:
    """A number of tokens: 50M, 1.5B, 2e9."""

    least: int = 1
    most: int = MOST_TOKENS

    def text(self, kind: type) -> str:  # noqa: ARG002 - as in all rules
        """Return what the values are."""
        most = f", at most {number_text(self.most)}" if self.most < MOST_TOKENS else ""
        return f"tokens, such as 50M or 1.5B{most}"

    def allows(self, value: Any) -> bool:  # noqa: ANN401
        """Return whether a count lies within the bounds."""
        return bool(self.least <= value <= self.most)


Words = Annotated[str, Text(r"[^\0]+", "text that is not empty")]
Tokens = Annotated[int, TokenCount()]
Count = Annotated[int, Within(1, 10**9)]
Share = Annotated[float, Within(0, 1)]
PartialShare = Annotated[float, Within(0, below=1)]
PositiveShare = Annotated[float, Within(1e-6, 1)]
LearningRate = Annotated[float, Within(1e-12, 1, note="such as 6e-4")]
LossScale = Annotated[float, Within(1e-6, 1e12)]
Seconds = Annotated[float, Within(0, 1e7)]


def parse_tokens(name: str, value: object) -> int:
    """Return a positive number of tokens out of `50M`, `1.5B`, `2e9` or a number; `name` is for the error."""
    given = f"{name}={value_text(value)}"
    advice = f"{given}: not a number of tokens; write for example 50M, 1.5B or 2e9"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(advice)
    match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*([kmbt]?)", str(value).strip().lower())
    if match is None:
        raise UserError(advice)
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]]
    tokens = float(match[1].replace("_", "")) * scale
    if tokens > MOST_TOKENS:
        raise UserError(f"{given}: must be at most {number_text(MOST_TOKENS)} tokens")
    if round(tokens) < 1:
        raise UserError(f"{given}: must be at least one token")
    return round(tokens)


def _simple(kind: type, value: object) -> Any:  # noqa: ANN401 - what `kind` says
    """Return a value as text, number or truth, if it says one. Raises `ValueError` where it does not."""
    if kind is str:
        if isinstance(value, str | int | float):
            return str(value)
    elif kind is bool:
        if (word := value_text(value).lower()) in TRUE + FALSE:
            return word in TRUE
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        text = str(value).strip()
        if text.isascii():
            number = float(text)
            if kind is float or not number.is_integer():
                return kind(text)
            return int(number) if "e" in text.lower() or "." in text else int(text)
    raise ValueError


def _take(kind: Any, value: object, key: str, *, saved: bool) -> Any:  # noqa: ANN401 - what an annotation says
    """Return `value` as the annotation `kind` has it."""
    origin, inner = get_origin(kind), get_args(kind)
    rule = None
    if origin in (Union, UnionType):
        return None if value is None else _take(inner[0], value, key, saved=saved)
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{key}={value_text(value)}: must be a list, such as [{value_text(value)}]")
        return [_take(inner[0], item, key, saved=saved) for item in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value_text(value)}: must be a mapping, such as {{name: 1}}")
        return {str(name): _take(inner[1], item, f"{key}.{name}", saved=saved) for name, item in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return build(kind, value, key, saved=saved)
    if origin is Annotated:
        kind, rule = inner
    what = rule.text(kind) if rule else NOUNS[kind]
    try:
        taken = parse_tokens(key, value) if isinstance(rule, TokenCount) else _simple(kind, value)
    except (ValueError, OverflowError):
        raise UserError(f"{key}={value_text(value)}: must be {what}") from None
    if rule is None or saved or rule.allows(taken):
        return taken
    if isinstance(rule, Choice):
        raise choice(key, value_text(value), rule.names)
    raise UserError(f"{key}={value_text(value)}: must be {what}")


def says(kind: Any) -> str:  # noqa: ANN401 - an annotation
    """Return what an annotation takes, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return f"{says(inner[0])}, or null"
    if origin is list:
        return f"a list, each {says(inner[0])}"
    if origin is dict:
        return f"a mapping, each {says(inner[1])}"
    if origin is Annotated:
        return str(inner[1].text(inner[0]))
    if is_dataclass(kind):
        return f"a {kind.SHORT}, or keys" if hasattr(kind, "SHORT") else "keys"
    return NOUNS[kind]


@cache
def taken_by(kind: type) -> dict[str, Any]:
    """Return what each field of a dataclass takes."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind)}


def build(kind: type[T], values: object, key: str = "", *, saved: bool = False) -> T:
    """Return the dataclass `kind` of plain values; `key` is where they stand, for errors.

    Text can stand for a group that says in `SHORT` which of its keys is meant. Raises `UserError` for the first key
    that is unknown or missing, and the first value that is of another type or out of its bounds. What was `saved` by
    a version with other bounds is taken as it is.
    """
    short = getattr(kind, "SHORT", None)
    if short and isinstance(values, str) and values != MISSING:
        values = getattr(kind, "NAMED", {}).get(values) or {short: values}
    if not isinstance(values, Mapping):
        what = f"must be a {short}, or" if short else "is"
        raise UserError(f"{key}={value_text(values)}: {what} a group of keys, not a value; give {key}.KEY=…")
    prefix, known = f"{key}." if key else "", taken_by(cast("type", kind))
    if unknown := [str(name) for name in values if name not in known]:
        raise UserError(f"{prefix}{unknown[0]}: unknown key{nearest(unknown[0], known)}")
    taken = {}
    # Groups first: values at the top follow theirs, and a mistake is told where it was made.
    for f in sorted(fields(kind), key=lambda f: not is_dataclass(known[f.name])):  # type: ignore[arg-type]
        value = values.get(f.name, MISSING)
        absent = isinstance(value, str) and value == MISSING
        if not absent:
            taken[f.name] = _take(known[f.name], value, f"{prefix}{f.name}", saved=saved)
        elif (not saved and f.default == MISSING) or (f.default is NO_DEFAULT and f.default_factory is NO_DEFAULT):
            raise UserError(f"{prefix}{f.name}: needs a value; give {prefix}{f.name}=…")
    return kind(**taken)


def quoted(value: object) -> str:
    """Return a value as Hydra's grammar takes it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quoted(v)}" for key, v in value.items()) + "}"
    if isinstance(value, str) and not value.startswith("${"):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if value else "''"
    return str(value)
