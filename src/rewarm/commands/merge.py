"""`rewarm merge`: averages of checkpoints, scored on both validation sets, and kept where asked for."""

from __future__ import annotations

import logging
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarm.commands.begin import begin
from rewarm.commands.eval import Scoring, as_the_run_was
from rewarm.config.differences import differing
from rewarm.config.schema import SIDES
from rewarm.config.values import quoted
from rewarm.errors import RewarmError, UserError, choice
from rewarm.forecast.options import PARSERS
from rewarm.report.arms import Arm, arms_of, load
from rewarm.report.merging import (
    FOLDER,
    STEM,
    Losses,
    Row,
    as_csv,
    as_json,
    draw,
    points_of,
    recovered,
    seed_noise,
    table,
    verdict,
)
from rewarm.runs import checkpoint
from rewarm.runs.run import Run, open_run, run_named
from rewarm.runs.words import quoted_path
from rewarm.storage import make_dir, write_durably, write_json
from rewarm.text import marked

if TYPE_CHECKING:
    from tqdm import tqdm

    from rewarm.model.merging import Part

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The keys of its own, each with what it takes on the command line."""

    alphas: tuple[float, ...] = ()
    """Points of a line."""
    extrapolate: bool = False
    """Whether they may lie beyond its ends."""
    window: tuple[float, ...] = ()
    """Shares of a run, up to its end."""
    shape: tuple[str, ...] = ()
    """Shapes of a decay."""
    save: str | None = None
    """The average to keep: `best`, an alpha, or a label."""
    max_forgetting: float | None = None
    """Most that the upstream loss of the best may rise, in nats, or where `forgetting_is_share` as a share of it."""
    forgetting_is_share: bool = False
    weights: tuple[float, float] | None = None
    """Weights of upstream and downstream loss, by which one is the best."""
    output: Path | None = None
    """Folder for table, figure and averages; `report` of the run where not given."""


@dataclass(frozen=True)
class Mix:
    """An average to make."""

    label: str
    parts: tuple[Part, ...]
    alpha: float | None = None

    @property
    def whole(self) -> Part | None:
        """Return the model that it is, where it is one of its parts alone."""
        parts = [part for part in self.parts if part.weight]
        return parts[0] if len(parts) == 1 and parts[0].weight == 1 else None


@dataclass(frozen=True)
class Asked:
    """The arguments, told apart."""

    inits: tuple[str, ...]
    own: Options
    overrides: tuple[str, ...]
    """What scores the averages."""


def numbers(key: str, text: str) -> tuple[float, ...]:
    """Return the numbers of `0:1:0.1` (first, last, distance) or of `0,0.4,1`. Raises `UserError` for others."""
    try:
        if ":" in text:
            first, last, distance = map(float, text.split(":"))
            points = math.floor((last - first) / distance + 1e-9) + 1
            found = [round(first + i * distance, 10) for i in range(points)] if points <= 1000 else []
        else:
            found = [float(part) for part in text.strip("[]").split(",")]
    except (ValueError, ArithmeticError):
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise UserError(f"{key}={text}: must be numbers, such as 0.2,0.4 or 0:1:0.1")
    return tuple(found)


def _shapes(key: str, text: str) -> tuple[str, ...]:
    from rewarm.model.merging import SHAPES

    for shape in text.split(","):
        if shape not in SHAPES:
            raise choice(key, shape, SHAPES)
    return tuple(text.split(","))


def _windows(key: str, text: str) -> tuple[float, ...]:
    found = numbers(key, text)
    if not all(0 < window <= 1 for window in found):
        raise UserError(f"{key}={text}: must be a share of the run, above 0 and at most 1")
    return found


TAKES: dict[str, Callable[[str, str], object]] = {
    "alphas": numbers,
    "window": _windows,
    "shape": _shapes,
    "save": lambda _, text: text,
    "extrapolate": PARSERS["verbose"],
    **{key: PARSERS[key] for key in ("max_forgetting", "weights", "output")},
}
"""How its own keys are read; all others are overrides of what scores the averages."""
OF_OTHERS = {1: ("alphas", "extrapolate"), 2: ("window", "shape")}
"""By the number of models, keys that mean nothing for them; three and more take none of these."""
CALLED = {1: "one run", 2: "a start and an end"}


def parse(arguments: Sequence[str]) -> Asked:
    """Return the arguments told apart. Raises `UserError` where they are no question."""
    inits: list[str] = []
    own: dict[str, str] = {}
    overrides: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):  # of the config; a folder of configs may follow
            overrides += [argument, *([left.pop(0)] if argument in ("-cd", "--config-dir") and left else [])]
        elif not equals or Path(argument.partition("@")[0]).expanduser().exists():
            inits.append(argument)
        elif key in TAKES:
            own[key] = value
        else:
            overrides.append(argument)
    if not inits:
        raise UserError("merge: give a start and an end, one run with window=…, or several runs")
    for key in OF_OTHERS.get(len(inits), sum(OF_OTHERS.values(), ())):
        if key in own:
            raise UserError(
                f"{key}={own[key]}: has no effect on {CALLED.get(len(inits), 'several runs')}; leave it out"
            )
    for key in ("max_forgetting", "weights"):
        if key in own and own.get("save") != "best":
            raise UserError(f"{key}={own[key]}: says which average is the best to keep; give save=best too")
    taken: dict[str, Any] = {key: TAKES[key](key, value) for key, value in own.items()}
    share = own.get("max_forgetting", "").endswith("%")
    return Asked(tuple(inits), Options(**taken, forgetting_is_share=share), tuple(overrides))


def on_line(asked: Asked, start: Part, end: Part) -> list[Mix]:
    """Return the averages between two models. Raises `UserError` for one beyond them that was not asked for."""
    own = asked.own
    alphas = {0.0, 1.0, *(own.alphas or numbers("alphas", "0:1:0.1"))}
    alphas |= set(numbers("save", own.save)) if own.save not in (None, "best") else set()
    for alpha in sorted(alphas):
        if not (0 <= alpha <= 1 or own.extrapolate):
            raise UserError(f"alphas={alpha:g}: lies beyond start and end; give extrapolate=true for that")
    parts = {alpha: (replace(start, weight=1 - alpha), replace(end, weight=alpha)) for alpha in sorted(alphas)}
    return [Mix(f"alpha={alpha:g}", pair, alpha) for alpha, pair in parts.items()]


def over_windows(asked: Asked, run: Run) -> list[Mix]:
    """Return the averages over the last part of a run, and its end. Raises `UserError` where too little was kept."""
    from rewarm.model.merging import Part, decay_weights

    shapes, steps = asked.own.shape or ("linear",), run.checkpoints

    def part(step: int, weight: float) -> Part:
        return Part(f"{run.name}@step{step}", run.checkpoint(step), weight)

    mixes = [Mix("end", (part(steps[-1], 1.0),))] if steps else []
    for window in asked.own.window or (0.2,):
        inside = [step for step in steps if step >= (1 - window) * steps[-1] - 1e-9]
        if len(inside) < 2:
            raise UserError(
                f"window={window:g}: {run.path} has kept {len(inside)} checkpoint there, and an average needs two; "
                f"give a larger window, or train with checkpoint.keep=0 and a smaller checkpoint.every"
            )
        mixes += [Mix(f"{s} {window:g}", tuple(map(part, inside, decay_weights(inside, s)))) for s in shapes]
    return mixes


def mixes_of(asked: Asked) -> list[Mix]:
    """Return the averages that were asked for. Raises `UserError` or `CheckpointError` where they cannot be made."""
    from rewarm.model.init import resolve_init
    from rewarm.model.merging import Part, check_alike

    if len(asked.inits) == 1:
        path = run_named(asked.inits[0])
        if path is None or "@" in asked.inits[0]:
            raise UserError(f"{asked.inits[0]}: is no run's folder; give a run, or a start and an end")
        mixes = over_windows(asked, open_run(path))
    else:
        parts = []
        for name in asked.inits:
            init = resolve_init(name)
            if init.folder is None:
                raise UserError(f"{name}: has no weights to average")
            parts.append(Part(name, init.folder, 1.0))
        if len(parts) == 2:
            mixes = on_line(asked, *parts)
        else:
            share = [replace(part, weight=1 / len(parts)) for part in parts]
            mixes = [*(Mix(part.name, (part,)) for part in parts), Mix(f"mean of {len(parts)}", tuple(share))]
    models = list({part.folder: part for mix in mixes for part in mix.parts}.values())
    check_alike(models)
    for part in models:
        checkpoint.check_whole(part.folder)
    return mixes


def wanted(asked: Asked, mixes: Sequence[Mix]) -> Mix | None:
    """Return the average that `save` names; None where it names none, or the best. Raises `UserError` for others."""
    named = asked.own.save
    if named is None or named == "best":
        return None
    label = f"alpha={numbers('save', named)[0]:g}" if len(asked.inits) == 2 else named
    found = [mix for mix in mixes if mix.label == label]
    if not found:
        raise UserError(f"save={named}: is none of {', '.join(mix.label for mix in mixes)}, nor best")
    return found[0]


def score(mixes: Sequence[Mix], scoring: Scoring, place: Path) -> list[Row]:
    """Return the scores of all averages. Each is written to `place` for the time that it takes to score it."""
    from tqdm import tqdm

    from rewarm.model.merging import count

    tensors = count(mixes[0].parts[-1])
    total = sum(tensors for mix in mixes if mix.whole is None)
    rows = []
    with tqdm(total=total, unit="tensor", disable=None) as bar:
        for mix in mixes:
            rows.append(_row(mix, scoring, place, bar))
            log.info("%s: upstream %.4f, downstream %.4f", mix.label, *rows[-1].losses)
    return rows


def _row(mix: Mix, scoring: Scoring, place: Path, bar: tqdm[Any]) -> Row:
    from rewarm.model.init import Init
    from rewarm.model.merging import write

    folder = place / ".merging"
    try:
        if mix.whole is None:
            shutil.rmtree(folder, ignore_errors=True)  # left by a command that was killed
            write(mix.parts, folder, bar.update)
        init = Init(mix.label, folder if mix.whole is None else mix.whole.folder, whole=True)
        scores = scoring.scores(scoring.load(init))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Row(mix.label, scores, {part.name: part.weight for part in mix.parts}, mix.alpha)


def best_of(own: Options, rows: Sequence[Row], start: Losses | None) -> Row:
    """Return the best average: within `max_forgetting`, or by `weights`. Raises `UserError` where none is within."""
    if own.max_forgetting is None:
        up, down = own.weights or (1.0, 1.0)
        return min(rows, key=lambda row: up * row.losses[0] + down * row.losses[1])
    assert start is not None, "asked for at the door"
    allowed = own.max_forgetting * (start[0] if own.forgetting_is_share else 1)
    within = [row for row in rows if row.losses[0] <= start[0] + allowed]
    if not within:
        least = min(row.losses[0] for row in rows) - start[0]
        raise UserError(f"max_forgetting={allowed:g}: no average forgets so little; the least is {least:.4f} nats")
    return min(within, key=lambda row: row.losses[1])


def beside(run: Run | None) -> list[Arm]:
    """Return the finished arms of the sweep that a run belongs to, its own among them."""
    if run is None:
        return []
    folder = run.path.resolve().parent
    try:
        runs = [other for other in load([folder]) if other.finished and other.path.resolve().parent == folder]
    except RewarmError as error:
        log.warning("%s", error)
        return []
    own = Arm((run,)).setting
    return [arm for arm in arms_of(runs) if arm.setting == own]


def decayed(run: Run, arms: Sequence[Arm]) -> Run | None:
    """Return the run of the same seed that differs from a run by how its LR decays, and ends at the lowest LR."""
    shape = {"schedule.name", "schedule.decay_fraction", "schedule.decay_shape", "min_lr_ratio"}
    others = [r for arm in arms for r in arm.runs if r.seed == run.seed and r.plan.steps == run.plan.steps]
    lower = [r for r in others if r.lr[-1] < 0.9 * run.lr[-1] and differing(run.config, r.config).keys() <= shape]
    return min(lower, key=lambda r: (r.lr[-1], -float(r.lr.sum())), default=None)


def sentences(rows: Sequence[Row], run: Run | None, arms: Sequence[Arm]) -> list[str]:
    """Return what the averages say: beside the arms of the sweep, and beside a run that was decayed."""
    said = [verdict(rows, points_of(arms), seed_noise(arms))]
    other = decayed(run, arms) if run and rows[0].label == "end" else None
    if other is not None:
        [annealed] = points_of([Arm((other,))])
        for row in rows[1:]:
            shares = recovered(row, rows[0].losses, annealed.losses)
            told = ["nothing to gain" if share is None else f"{share:.0%}" for share in shares]
            said.append(
                f"{row.label} recovers {told[0]} (upstream) and {told[1]} (downstream) of what {other.name} gains."
            )
    return [sentence for sentence in said if sentence]


def merge(arguments: Sequence[str]) -> None:
    """Make, score, compare and keep the averages that the arguments ask for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    asked = parse(arguments)
    begun = begin("eval", [f"init={quoted(asked.inits[-1])}", *asked.overrides])
    if begun is None:
        return
    mixes = mixes_of(asked)
    path = run_named(asked.inits[-1])
    run = open_run(path) if path is not None else None
    start = losses_before(run) if run else None
    if asked.own.max_forgetting is not None and start is None and len(asked.inits) != 2:
        raise UserError("max_forgetting: the loss before training is not known here; give weights=…")
    place = make_dir(asked.own.output or (run.path / FOLDER if run else Path("merged")), "output")
    kept = wanted(asked, mixes)
    if kept is not None:
        from rewarm.model.merging import check_free

        check_free(target_of(kept.label, place))
    scored = as_the_run_was(begun.config, begun.overrides)
    rows = score(mixes, Scoring.of(scored), place)
    arms = beside(run)
    said = sentences(rows, run, arms)
    said = [marked(sentence, proxy=scored.proxied) for sentence in said]
    sys.stdout.write(marked(table(rows), proxy=scored.proxied) + "".join(f"\n{sentence}" for sentence in said) + "\n")
    points, noise = points_of(arms), seed_noise(arms)
    stem = f"{STEM}-window" if len(asked.inits) == 1 else STEM
    write_json(place / f"{stem}.json", as_json(rows, points, noise, said))
    write_durably(place / f"{stem}.csv", as_csv(rows).encode())
    figures = [path.name for path in draw(rows, points, place / stem, proxy=scored.proxied)]
    sys.stdout.write(f"written to {place}: {', '.join([f'{stem}.json', f'{stem}.csv', *figures])}\n")
    if asked.own.save is not None:
        on_line = [row.losses for row in rows if row.alpha == 0]
        label = kept.label if kept else best_of(asked.own, rows, on_line[0] if on_line else start).label
        keep(next(mix for mix in mixes if mix.label == label), target_of(label, place))


def losses_before(run: Run) -> Losses | None:
    """Return both losses before a run's training; None where they were not logged."""
    up, down = (run.loss(side)[1] for side in SIDES)
    return (float(up[0]), float(down[0])) if len(up) and len(down) else None


def target_of(label: str, place: Path) -> Path:
    """Return the folder of an average that is kept."""
    return place / f"merged-{label.replace('alpha=', '').replace(' ', '-')}"


def keep(mix: Mix, target: Path) -> None:
    """Write an average as a folder in Hugging Face's format, and say how to go on from it."""
    from rewarm.model.merging import write

    write(mix.parts, target)
    sys.stdout.write(f"{mix.label} is kept; next: rewarm train init={shlex.quote(quoted_path(target))}\n")
