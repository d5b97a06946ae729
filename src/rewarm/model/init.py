"""Where weights come from: what `init` names, found and downloaded, and found again when the run goes on."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewarm.data.tokenizers import ASSETS
from rewarm.errors import CheckpointError
from rewarm.hub.asking import parse_id
from rewarm.hub.download import WEIGHTS, download
from rewarm.runs import checkpoint
from rewarm.runs.manifest import Pinned
from rewarm.runs.run import read_losses

UPSTREAM = ASSETS / "upstream"
"""The run that made the built-in model: a folder for each step of its pre-training that is kept."""


@dataclass(frozen=True)
class Init:
    """Where weights come from. `folder` is a Hugging Face folder; None means random weights."""

    name: str
    folder: Path | None
    step: int | None = None
    """The step of the checkpoint, in a run or in the built-in model's pre-training."""
    commit: str | None = None
    """The commit of the hub's repository that it comes from."""
    whole: bool = False
    """Whether its files have been compared with its manifest already."""


def _builtin() -> dict[int, Path]:
    found = ((re.fullmatch(r"step(\d+)", path.name), path) for path in UPSTREAM.iterdir())
    return {int(match[1]): path for match, path in found if match}


def _pick(init: str, revision: str, steps: Mapping[int, Path]) -> int:
    """Return the step of `revision` (`step1000`, `1000`; empty: the last). Names the nearest steps if none."""
    if not steps:
        raise CheckpointError(f"init={init}: there is no checkpoint")
    if not revision:
        return max(steps)
    match = re.fullmatch(r"(?:step-?)?(\d+)", revision)
    if match is None or int(match[1]) not in steps:
        wanted = int(match[1]) if match else 0
        near = sorted(sorted(steps, key=lambda step: abs(step - wanted))[:4])
        names = ", ".join(f"step{step}" for step in near)
        raise CheckpointError(f"init={init}: there is no checkpoint {revision}; the nearest are {names}")
    return int(match[1])


def nearest_by_loss(init: str, target: float, curve: Mapping[int, float], steps: Mapping[int, Path]) -> int:
    """Return the step whose upstream loss was nearest to `target`, in nats; `curve` has the loss by step.

    So the paper chose its earlier checkpoints: by how far the model still was from converged.
    """
    scored = {step: curve[step] for step in steps if step in curve}
    if not scored:
        raise CheckpointError(f"init={init}: no checkpoint's upstream loss is known; choose one by its step")
    return min(scored, key=lambda step: abs(scored[step] - target))


def _pretraining_curve() -> dict[int, float]:
    """Return the upstream loss of the built-in checkpoints by step, from the `curve.csv` beside them."""
    with (UPSTREAM / "curve.csv").open(encoding="utf-8", newline="") as file:
        return {int(row["step"]): float(row["upstream_loss"]) for row in csv.DictReader(file)}


def _held(base: str) -> tuple[dict[int, Path], Callable[[], Mapping[int, float]]] | None:
    """Return the checkpoints of the built-in model or of a run by step, and what gives their upstream losses."""
    if base == "builtin":
        return _builtin(), _pretraining_curve
    path = Path(base).expanduser()
    held = path / checkpoint.CHECKPOINTS
    if held.is_dir():
        steps = {step: checkpoint.folder_of(held, step) for step in checkpoint.steps(held)}
        return steps, lambda: read_losses(path, "upstream")
    return None


def find_local(init: str) -> Init | None:
    """Return where the weights of `init` lie on this machine, or None where the hub has to be asked for them.

    Raises `CheckpointError` where neither can have them.
    """
    if init == "scratch":
        return Init(init, None)
    base, _, revision = init.partition("@")
    if held := _held(base):
        steps, curve = held
        if revision == checkpoint.AVERAGE and steps:
            folder = steps[max(steps)] / checkpoint.AVERAGE
            if not folder.is_dir():
                raise CheckpointError(f"init={init}: has no running average; train it with average.half_life=0.1")
            return Init(init, folder, max(steps))
        target = re.fullmatch(r"loss(\d+\.?\d*)", revision)
        step = nearest_by_loss(init, float(target[1]), curve(), steps) if target else _pick(init, revision, steps)
        return Init(init, steps[step], step)
    folder = Path(base).expanduser()
    if (folder / "config.json").is_file() and not revision:
        return Init(init, folder, checkpoint.step_of(folder) if checkpoint.run_of(folder) else None)
    # runs/mine is a missing folder, not a repository
    if parse_id("init", init) is None or Path(init.split("/", maxsplit=1)[0]).is_dir():
        raise CheckpointError(
            f"init={init}: no such checkpoint; give scratch, builtin, a folder, a run's folder or owner/name@revision"
        )
    return None


def _from_hub(init: str, revision: str) -> Init:
    repo = parse_id("init", init, revision)
    assert repo is not None, "find_local refuses what is no repository's name"
    folder = download(repo, ["*.json"], WEIGHTS)
    return Init(init, folder, commit=folder.name)  # the hub's cache names a snapshot's folder for its commit


def resolve_init(init: str) -> Init:
    """Return where the weights of `init` lie, downloaded if need be. Raises `CheckpointError` where there are none.

    Forms: scratch, builtin, builtin@STEP, builtin@lossX, FOLDER (in Hugging Face's format), RUN, RUN@STEP, RUN@lossX,
    RUN@average, OWNER/NAME@REVISION; `lossX` is the checkpoint whose upstream loss was nearest to X.
    """
    return find_local(init) or _from_hub(init, "main")


def pin(init: Init) -> Pinned:
    """Return what a run's manifest holds of where its weights came from, so that it can go on from the same ones."""
    if init.folder is None:
        return Pinned(init.name)
    identity = init.commit or checkpoint.identity(init.folder)
    return Pinned(init.name, str(init.folder.resolve()), init.step, identity)


def resolve_pinned(pinned: Pinned) -> Init:
    """Return where the weights lie that a run began from, though `init` may lead elsewhere by now.

    Raises `CheckpointError` where they are gone, or others lie in their place.
    """
    if pinned.folder is None:
        return Init(pinned.asked, None)
    was, base = Path(pinned.folder), pinned.asked.partition("@")[0]
    if was.name == pinned.identity and parse_id("init", base):  # a snapshot of the hub
        commit = was.name
        return Init(pinned.asked, was, commit=commit) if was.is_dir() else _from_hub(f"{base}@{commit}", commit)
    places = [was]
    if pinned.step is not None and (held := _held(base)):  # where the folders were moved together
        inner = checkpoint.AVERAGE if was.name == checkpoint.AVERAGE else "."
        places += [path / inner for step, path in held[0].items() if step == pinned.step]
    for place in places:
        if place.is_dir() and pinned.identity in (None, checkpoint.identity(place)):
            return Init(pinned.asked, place, pinned.step)
    raise CheckpointError(
        f"init={pinned.asked}: the run was begun from {was}, which is gone or holds other weights by now; "
        f"put it back, or begin anew in another run_dir"
    )
