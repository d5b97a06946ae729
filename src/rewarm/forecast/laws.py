"""The laws: a loss is a sum of terms, each a coefficient times a shape of the learning-rate history.

    cpt              L0 + A (S_pt + S)^-alpha - C1 D_pt - C D + B v(r) (1 - (1 + E S)^-beta)
                     Wang et al. 2025 (arXiv 2505.07796): B > 0 where the loss is of data that is forgotten,
                     B < 0 where it is of data that is learned
    single           L0 + A (S_pt + S)^-alpha - C D                     Tissue et al. 2024 (arXiv 2408.11029)
    multipower       L0 + A (S_pt + S)^-alpha - C sum_k (eta_(k-1) - eta_k) (1 - (1 + G eta_k^-gamma S_k)^-delta)
                                                                        Luo et al. 2025 (arXiv 2503.12811)
    cpt_multipower   cpt, with the drop of multipower in place of D

Of models of several sizes N, each has an L0 and an A of its own, which a short run of it tells, and C is C N^g, as in
Wang et al.'s Eq. 7; what the shift does is the same for all sizes.

S is the area under the LR since the run began, S_pt that of pre-training, D = (1 - lambda) S2 the remembered drop of
the LR, S_k the area since change k, r the share of replay. v(r) is 1 without replay; see `visible`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rewarm.forecast.features import Features, Remembered, Units
from rewarm.forecast.history import Array


@dataclass(frozen=True)
class LawShape:
    """Which terms a law has beside `L0 + A (S_pt + S)^-alpha`, which all have."""

    shift: bool
    """Whether the data may differ from those of pre-training. A law without it speaks of one data set alone."""
    drop: Literal["memory", "multipower"]
    """How a falling LR lowers the loss: by the remembered drop D, or by the sum of the multi-power law."""


LAWS = {
    "cpt": LawShape(shift=True, drop="memory"),
    "single": LawShape(shift=False, drop="memory"),
    "multipower": LawShape(shift=False, drop="multipower"),
    "cpt_multipower": LawShape(shift=True, drop="multipower"),
}
"""The one table of laws: whoever asks what a law has asks it, and never its name."""
REPLAY_TERMS = ("power", "hyperbolic")

Values = Mapping[str, float]
Derivatives = dict[str, Array]
TINY_AREA = 1e-9
SAME_SIZE = 0.01
"""Share of their parameters up to which two models count as one size."""

SHAPE_BOUNDS = {
    "alpha": (0.05, 2.0),
    "S_pt": (1e-3, 1e3),
    "E": (1e-1, 1e5),
    "beta": (0.02, 3.0),
    "G": (1e-2, 1e4),
    "gamma": (1e-2, 2.0),
    "delta": (0.02, 3.0),
    "rho": (1e-4, 1e3),
    "g": (0.06, 0.5),
}
"""Lowest and highest value of each shape, in the units of `features`. Those of `memory` are what is tabulated.

The middle of those of `g`, which one size alone cannot tell, lies between Wang et al.'s 0.145 to 0.235.
"""


@dataclass(frozen=True)
class Term:
    """`coefficient * f(points; shapes)`. Coefficients are at least 0 unless `signed`.

    A shape is a parameter on which the loss does not depend linearly. Shapes are positive and fitted by their logs.
    """

    coefficient: str
    shapes: tuple[str, ...]
    evaluate: Callable[[Values], tuple[Array, Derivatives]]
    """Returns f at all points, and its derivative by the log of each shape."""
    signed: bool = False


@dataclass(frozen=True)
class Law:
    """A law bound to the points that it is evaluated at."""

    name: str
    terms: tuple[Term, ...]

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Return the names of the coefficients, in the order of the terms."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def shapes(self) -> tuple[str, ...]:
        """Return the names of the shapes, in the order of the terms, each once."""
        return tuple(dict.fromkeys(shape for term in self.terms for shape in term.shapes))

    def columns(self, values: Values) -> Array:
        """Return f of each term, (terms, n)."""
        return np.stack([term.evaluate(values)[0] for term in self.terms])

    def loss(self, values: Values) -> tuple[Array, Array]:
        """Return the loss at all points, (n,), in nats a token, and its derivatives, (parameters, n).

        Derivatives are by the coefficients, then by the logs of the shapes.
        """
        total = np.zeros(1)
        columns, slopes = [], {name: np.zeros(1) for name in self.shapes}
        for term in self.terms:
            column, derivatives = term.evaluate(values)
            columns.append(column)
            total = total + values[term.coefficient] * column
            for name, slope in derivatives.items():
                slopes[name] = slopes[name] + values[term.coefficient] * slope
        return total, np.stack([*columns, *slopes.values()])


def _floor(f: Features) -> Term:
    ones = np.ones(len(f))
    return Term("L0", (), lambda _: (ones, {}))


def _forward(f: Features, *, history_known: bool) -> Term:
    def evaluate(v: Values) -> tuple[Array, Derivatives]:
        before = f.area_before if history_known else v["S_pt"]
        area = np.maximum(before + f.area, TINY_AREA)
        power = area ** -v["alpha"]
        slopes = {"alpha": -v["alpha"] * np.log(area) * power}
        if not history_known:
            slopes["S_pt"] = -v["alpha"] * power / area * v["S_pt"]
        return power, slopes

    return Term("A", ("alpha",) if history_known else ("alpha", "S_pt"), evaluate)


def _remembered_drop(coefficient: str, drops: Array, units: Units, memory: float | None) -> Term:
    table = Remembered(units, drops)

    def evaluate(v: Values) -> tuple[Array, Derivatives]:
        drop, by_memory = table(np.log(v["memory"] if memory is None else memory))
        return -drop, {"memory": -by_memory} if memory is None else {}

    return Term(coefficient, ("memory",) if memory is None else (), evaluate)


def _multipower_drop(f: Features) -> Term:
    log_lr = np.log(f.block_lr)

    def evaluate(v: Values) -> tuple[Array, Derivatives]:
        reach = v["G"] * np.exp(-v["gamma"] * log_lr) * f.block_area
        left = (1 + reach) ** -v["delta"]
        by_reach = f.block_drop * v["delta"] * left / (1 + reach) * reach
        slopes = {
            "G": -by_reach.sum(0),
            "gamma": (by_reach * v["gamma"] * log_lr).sum(0),
            "delta": -(f.block_drop * v["delta"] * np.log1p(reach) * left).sum(0),
        }
        return -(f.block_drop * (1 - left)).sum(0), slopes

    return Term("C", ("G", "gamma", "delta"), evaluate)


def _grown(term: Term, parameters: Array, smallest: float) -> Term:
    """Return a term that grows with the model as (N / smallest)^g."""
    log_size = np.log(parameters / smallest)

    def evaluate(v: Values) -> tuple[Array, Derivatives]:
        column, slopes = term.evaluate(v)
        size = np.exp(v["g"] * log_size)
        by_shape = {name: size * slope for name, slope in slopes.items()}
        return size * column, by_shape | {"g": v["g"] * log_size * size * column}

    return Term(term.coefficient, (*term.shapes, "g"), evaluate, term.signed)


def _of_one_size(term: Term, name: str, mine: NDArray[np.bool_], *, signed: bool) -> Term:
    """Return a term that only points of one model have."""

    def evaluate(v: Values) -> tuple[Array, Derivatives]:
        column, slopes = term.evaluate(v)
        return mine * column, {shape: mine * slope for shape, slope in slopes.items()}

    return Term(f"{term.coefficient}_{name}", term.shapes, evaluate, signed)


def visible(kind: str, replay: Array, rho: float) -> tuple[Array, Array]:
    """Return the share of the shift that is left with `replay`, and its derivative by log rho.

    `power` is (1 - r)^rho, `hyperbolic` 1/(1 + r/rho): a little replay that helps much, as upstream losses show.
    """
    if kind == "power":
        share = (1 - replay) ** rho
        return share, rho * np.log1p(-replay) * share
    share = 1 / (1 + replay / rho)
    return share, share**2 * replay / rho


def _shift(f: Features, replay_term: str | None) -> Term:
    def evaluate(v: Values) -> tuple[Array, Derivatives]:
        growth = 1 + v["E"] * f.area
        left = growth ** -v["beta"]
        share, by_rho = f.shifted, np.zeros(0)
        if replay_term:
            seen, by_rho = visible(replay_term, f.replay, v["rho"])
            share = f.shifted * seen
        slopes = {
            "E": share * v["beta"] * left / growth * (growth - 1),
            "beta": share * v["beta"] * np.log(growth) * left,
        }
        if replay_term:
            slopes["rho"] = f.shifted * by_rho * (1 - left)
        return share * (1 - left), slopes

    return Term("B", ("E", "beta", "rho") if replay_term else ("E", "beta"), evaluate, signed=True)


@dataclass(frozen=True)
class Form:
    """Which terms a fit has: the law, and what its runs allow to be told apart."""

    law: str
    history_known: bool
    """Whether S_pt is known for all runs; else it is fitted."""
    histories_differ: bool
    """Whether the runs start from several pre-trainings, so that C1 can be told from L0."""
    replay_term: str | None
    """How replay enters; None where all runs replay the same share."""
    memory: float | None = None
    """Memory of LR changes, in tokens; fitted where None."""
    sizes: tuple[float, ...] = ()
    """Parameters of the models, rising; empty where all have as many."""

    def bind(self, f: Features, units: Units) -> Law:
        """Return the law at the points of `f`."""
        shape = LAWS[self.law]
        terms = [_floor(f), _forward(f, history_known=self.history_known)]
        for size in self.sizes[1:]:  # how each larger model differs from the smallest
            mine = np.isclose(f.parameters, size, rtol=SAME_SIZE)
            terms += [_of_one_size(term, size_text(size), mine, signed=True) for term in terms[:2]]
        if shape.drop == "multipower":
            terms.append(_multipower_drop(f))
        else:
            terms.append(_remembered_drop("C", f.drop, units, self.memory))
        if self.sizes:
            terms[-1] = _grown(terms[-1], f.parameters, self.sizes[0])
        if shape.drop == "memory" and shape.shift and self.histories_differ:
            terms.append(_remembered_drop("C1", f.drop_before, units, self.memory))
        if shape.shift:
            terms.append(_shift(f, self.replay_term))
        return Law(self.law, tuple(terms))


def form_of(law: str, f: Features, replay_term: str | None, memory: float | None = None) -> Form:
    """Return the form of `law` for runs with features `f`; a replay term only where replay differs."""
    sizes = distinct_sizes(f.parameters)
    known = bool(np.isfinite(f.area_before).all())
    # A model's own pre-training is in its own L0: only what differs among runs of one size tells C1.
    of_a_size = [f.area_before[np.isclose(f.parameters, size, rtol=SAME_SIZE)] for size in sizes] or [f.area_before]
    differ = known and any(float(np.ptp(area)) > 1e-6 * float(area.max()) for area in of_a_size)
    replays = replay_term if np.ptp(f.replay) > 0 else None
    return Form(law, known, differ, replays if LAWS[law].shift else None, memory, sizes)


def distinct_sizes(parameters: Iterable[float]) -> tuple[float, ...]:
    """Return the distinct sizes of models, rising; none where there is one alone, or one is not known."""
    found: list[float] = []
    for size in sorted(set(parameters)):
        if not found or size > found[-1] * (1 + SAME_SIZE):
            found.append(float(size))
    return tuple(found) if len(found) > 1 and np.isfinite(found).all() else ()


def size_text(parameters: float) -> str:
    """Return a number of parameters as papers write it: 25M."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= 0.9995 * unit:
            return f"{parameters / unit:.3g}{letter}"
    return f"{parameters:.3g}"


def bounds(shape: str, units: Units) -> tuple[float, float]:
    """Return the lowest and the highest value of a shape."""
    if shape == "memory":
        return float(units.memories[0]), float(units.memories[-1])
    return SHAPE_BOUNDS[shape]


def paper_units(values: Values, units: Units, tokens_per_step: float) -> dict[str, float]:
    """Return the parameters as the papers write them: S1 and S2 as sums over steps, LRs as they are."""
    area = units.area / tokens_per_step
    result = dict(values)
    for name in values:
        if name == "A" or name.startswith("A_"):
            result[name] = values[name] * area ** values["alpha"]
    for name in ("E", "S_pt"):
        if name in values:
            result[name] = values[name] / area if name == "E" else values[name] * area
    if "memory" in values:
        steps = result["memory"] = values["memory"] / tokens_per_step
        result["lambda"] = float(np.exp(-1 / steps))
        for name in ("C", "C1"):
            if name in values:
                result[name] = values[name] * (1 - result["lambda"]) / units.lr
    else:
        result["C"] = values["C"] / units.lr
        result["G"] = values["G"] / area * units.lr ** values["gamma"]
    return result
