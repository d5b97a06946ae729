"""Each check on a training that is broken on purpose in just that way, and all of them on healthy ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewarm.commands.diagnose import diagnose_all, parse, text
from rewarm.config.plan import make_plan
from rewarm.diagnose.checks import diagnose, step_of_return
from rewarm.diagnose.seen import Seen, Series, of_csv, of_run
from rewarm.errors import UserError
from rewarm.forecast.options import Logged
from rewarm.runs.folder import RunFolder
from rewarm.runs.manifest import Chosen, Conditions, Manifest, Pinned
from rewarm.runs.run import open_run
from rewarm.runs.summary import summarize
from rewarm.training.run import run
from tests.conftest import ROOT, make_config

BASE = ("train.batch_size=4", "train.context=32", "budget=64000", "tracker=none", "evaluation.every=25")
STEPS = np.arange(0, 501, 25)
PUBLIC = ROOT.parent / "shared" / "data" / "curves"
Shape = Callable[[np.ndarray], np.ndarray]
BEGUN = Manifest(chosen=Chosen("fp32"), conditions=Conditions(rewarm="1.0"))
HALF = replace(BEGUN, chosen=Chosen("fp16"))


def learned(steps: np.ndarray, peak: float = 0.1, start: float = 3.1, gain: float = 0.3) -> np.ndarray:
    """Return a healthy curve of the new data: up while the LR is re-warmed, then down below the start."""
    t = steps / 500
    return start + peak * np.exp(-(((t - 0.03) / 0.05) ** 2)) * (t > 0) - gain * np.sqrt(np.maximum(t - 0.02, 0))


def kept(steps: np.ndarray, rise: float = 0.01) -> np.ndarray:
    """Return a healthy curve of the old data."""
    t = steps / 500
    return 3.2 + rise * t + 0.2 * np.exp(-(((t - 0.05) / 0.08) ** 2)) * (t > 0)


def write(
    folder: Path,
    *overrides: str,
    new: Shape = learned,
    old: Shape = kept,
    train: Shape | None = None,
    extra: Mapping[str, Shape] | None = None,
    manifest: Manifest = BEGUN,
    until: int = 500,
) -> Seen:
    """Write a run folder with these losses, and return what is seen of it."""
    config = make_config(*BASE, *overrides)
    run_folder = RunFolder(folder)
    run_folder.create()
    run_folder.write_config(config)
    run_folder.write_manifest(manifest)
    noise = np.random.default_rng(0).normal(0, 0.001, (501, 3))
    shapes = {"downstream/loss": new, "upstream/loss": old, "train/loss": train or new} | dict(extra or {})
    for step in STEPS[until >= STEPS].tolist():
        row = {name: float(shape(np.array([step]))[0]) for name, shape in shapes.items()}
        row = {name: value + (noise[step, i] if i < 3 else 0) for i, (name, value) in enumerate(row.items())}
        if step == 0:
            row.pop("train/loss")
        run_folder.append_metrics({"step": step, "tokens": step * 128, **row})
    if until == make_plan(config).steps:
        run_folder.write_summary(summarize(open_run(folder).metrics))
    return of_run(open_run(folder))


def whats(seen: Seen) -> list[str]:
    return [finding.what for finding in diagnose(seen)]


@pytest.mark.parametrize("overrides", [("max_lr=6e-4",), ("data.train=upstream",), ("schedule=wsd",)])
def test_a_healthy_run_has_nothing(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    seen = write(tmp_path, *overrides)
    assert whats(seen) == []
    assert "nothing wrong seen (13 checks)" in text(seen)


def test_a_healthy_run_that_is_not_done_has_nothing(tmp_path: Path) -> None:
    assert whats(write(tmp_path, until=200)) == []


def test_a_run_that_was_hardly_scored_says_so(tmp_path: Path) -> None:
    assert "it was scored 2 times, and most checks need 5" in text(
        write(tmp_path, until=25, new=lambda t: 3.1 - t / 500)
    )


def test_divergence(tmp_path: Path) -> None:
    seen = write(tmp_path / "a", "max_lr=0.05", new=lambda t: learned(t) + 3 * (t > 200))
    assert whats(seen)[0] == "divergence"
    assert "downstream loss went from" in diagnose(seen)[0].evidence
    seen = write(tmp_path / "b", train=lambda t: np.where(t > 200, np.nan, learned(t)))
    assert whats(seen) == ["divergence"]
    assert "not finite after step 200" in diagnose(seen)[0].evidence


def test_trouble_with_the_loss_scale(tmp_path: Path) -> None:
    def scale(t: np.ndarray) -> np.ndarray:
        return np.maximum(4096.0 * 0.5 ** (t / 25), 1)

    few = write(tmp_path / "a", manifest=HALF, extra={"skipped": lambda t: 0 * t + 2.0, "loss_scale": scale})
    assert whats(few) == ["trouble with the loss scale"], "the scale is at its bottom"
    many = write(tmp_path / "b", manifest=HALF, extra={"skipped": lambda t: t / 10})
    assert "50 of 500 updates were skipped" in diagnose(many)[0].evidence
    start = write(tmp_path / "c", manifest=HALF, extra={"skipped": lambda t: 0 * t + 3.0})
    assert whats(start) == [], "a few skipped updates are how the scale is found"
    full = write(tmp_path / "d", extra={"skipped": lambda t: 0 * t + 1.0})
    assert whats(full) == ["gradients that are not finite"]


def test_a_stability_gap_says_how_long_to_wait(tmp_path: Path) -> None:
    def new(t: np.ndarray) -> np.ndarray:
        return 3.1 + np.where(t == 0, 0, 0.4 - 0.1 * np.log(np.maximum(t, 1) / 5))

    assert step_of_return(Series(np.arange(1.0, 99), new(np.arange(1, 99)))) is not None
    (finding,) = diagnose(write(tmp_path / "a", new=new, until=200))
    assert finding.what == "a stability gap"
    back = int(re.search(r"back at step (\d+)", finding.evidence)[1])  # type: ignore[index]
    assert abs(back - 5 * math.exp(4)) < 15
    assert re.fullmatch(r"wait 8\.\d+k tokens more", finding.advice)
    assert diagnose(write(tmp_path / "b", new=kept, until=25))[0].advice == "wait until half of the run"


def test_too_hot_for_the_budget(tmp_path: Path) -> None:
    seen = write(tmp_path, "max_lr=2e-3", new=lambda t: 3.1 + np.where(t == 0, 0, 0.5 - 0.05 * np.log(t / 5 + 1)))
    (finding,) = diagnose(seen)
    assert finding.what == "the LR is too hot for the budget"
    assert "of at most 0.002" in finding.evidence
    assert "max_lr=0.0007" in finding.advice


def test_too_cold_to_learn(tmp_path: Path) -> None:
    seen = write(tmp_path, "max_lr=1e-6", new=lambda t: 3.1 - 0.001 * t / 500)
    assert whats(seen) == ["the LR is too cold to learn"]
    assert "max_lr=0.0003" in diagnose(seen)[0].advice


def test_forgetting_names_the_run_that_tells_why_and_reads_it_where_it_is(tmp_path: Path) -> None:
    told = replace(BEGUN, other={"argv": ["rewarm", "train", *BASE, "max_lr=1e-3", "replay=0.1"]})
    seen = write(tmp_path / "a", "max_lr=1e-3", old=lambda t: kept(t, 0.4), manifest=told)
    (finding,) = diagnose(seen)
    assert finding.what == "forgetting"
    command = f"rewarm train {' '.join(BASE)} max_lr=1e-3 data.train=upstream run_dir={tmp_path / 'a-same-data'}"
    assert finding.advice.endswith(command)
    same = write(tmp_path / "b", "max_lr=1e-3", "data.train=upstream", old=lambda t: kept(t, 0.3))
    assert whats(same) == ["forgetting that is the LR's"]
    (finding,) = diagnose(of_run(open_run(tmp_path / "a")))
    assert finding.what == "forgetting that is mostly the LR's"
    assert "75% of it" in finding.evidence or "74% of it" in finding.evidence


def test_a_restart_that_begins_higher(tmp_path: Path) -> None:
    write(tmp_path / "first", manifest=replace(BEGUN, data={"tokenizer": "one"}))
    start = tmp_path / "first" / "checkpoints" / "step-500"
    start.mkdir(parents=True)
    (start / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
    init = Pinned("first", str(start), 500)
    again = replace(BEGUN, init=init, data={"tokenizer": "two"})
    seen = write(tmp_path / "second", manifest=again, new=lambda t: learned(t, peak=0.2))
    assert whats(seen) == ["a restart that begins higher than it ended", "texts without their begin-of-text token"]
    assert "tokenizer: another" in diagnose(seen)[0].evidence
    seen = write(tmp_path / "third", manifest=again, new=lambda t: learned(t, start=2.8, peak=0.05))
    assert whats(seen) == [], "it begins where the first ended, and loses little"


def test_a_jump_in_the_middle_of_a_curve() -> None:
    steps = np.arange(0, 1001, 20.0)
    losses = 3 - 0.2 * np.log(steps + 20) + np.where(steps > 500, 0.3 * np.exp(-(steps - 500) / 200), 0)
    lr = np.full(1000, 1e-4)
    seen = Seen("theirs", lr, 10, 1.0, {"loss": Series(steps, losses)}, Series.none())
    assert whats(seen) == ["a restart that begins higher than it ended"]
    lr[510:] = 1e-3
    assert whats(seen) == ["the LR jumps"]
    assert "from 0.0001 to 0.001" in diagnose(seen)[0].evidence


def test_a_spike_for_want_of_a_warm_up(tmp_path: Path) -> None:
    def new(t: np.ndarray) -> np.ndarray:
        return learned(t, peak=0) + 0.4 * (t == 25)

    assert whats(write(tmp_path / "a", "warmup=0", new=new)) == ["a spike for want of a warm-up"]


def test_repeated_data(tmp_path: Path) -> None:
    seen = write(
        tmp_path, new=lambda t: learned(t) + 0.5 * np.maximum(t - 200, 0) / 300, train=lambda t: learned(t) - t / 500
    )
    assert whats(seen) == ["repeated data"]
    assert diagnose(seen)[0].advice.startswith("an end after 25.6k tokens")


def test_a_sorted_corpus(tmp_path: Path) -> None:
    def law(t: np.ndarray) -> np.ndarray:
        return np.where(t < 250, 3 - t / 500, 2.5 + (t - 250) / 1000)

    def code(t: np.ndarray) -> np.ndarray:
        return np.where(t < 250, 3.0, 3.0 - (t - 250) / 500)

    extra = {"downstream/domain/law/loss": law, "downstream/domain/code/loss": code}
    seen = write(tmp_path, extra=extra)
    assert whats(seen) == ["a sorted corpus"]
    assert "law was learned and rose again by 0.25, while code fell" in diagnose(seen)[0].evidence


def test_an_evaluation_that_is_noisier_than_the_differences(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.08, 501)
    noise[0] = noise[500]
    seen = write(tmp_path, old=lambda t: 3.2 + noise[t])
    assert whats(seen) == ["an evaluation noisier than the differences"]


@pytest.fixture(scope="module")
def trained(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Return the folder of a real run of ten steps."""
    small = ("budget=1280", "data.validation_tokens=512", "data.shuffle_window=64", "device=cpu", "precision=fp32")
    return made_once("diagnosed", lambda path: run(make_config(*BASE, *small, "max_lr=3e-4", f"run_dir={path}")))


def test_a_real_run_and_its_embedding(trained: Path) -> None:
    seen = of_run(open_run(trained))
    assert seen.files.epochs is None or seen.files.epochs < 1
    assert seen.files.frozen is None
    from safetensors.torch import load_file, save_file

    start = Path(seen.run.manifest.init.folder)  # type: ignore[union-attr, arg-type]
    last = trained / "checkpoints" / f"step-{seen.last_step}" / "model.safetensors"
    kept_weights = load_file(last)
    name = "gpt_neox.embed_in.weight"
    try:
        save_file(kept_weights | {name: load_file(start / "model.safetensors")[name].float()}, last)
        frozen = of_run(open_run(trained)).files.frozen
    finally:
        save_file(kept_weights, last)
    assert frozen == name
    assert "embeddings that are not trained" in whats(replace(seen, files=replace(seen.files, frozen=name)))


def test_published_curves_of_our_own_have_nothing_but_forgetting() -> None:
    page = (ROOT / "docs" / "results" / "local" / "index.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    curves: dict[str, dict[str, Series]] = {}
    for chart in json.loads(found[1])["settings"][0]["charts"]:
        if chart["id"] in ("figure-1a", "figure-1b", "figure-2", "figure-3"):
            side = "downstream" if "downstream" in chart["title"] else "upstream"
            for line in chart["lines"]:
                steps = np.array(line["tokens"]) / 4096
                curves.setdefault(line["arm"], {})[side] = Series(steps, np.array(line["y"]))
    curves.pop("scratch")
    assert len(curves) >= 7
    for name, sides in curves.items():
        steps = int(max(series.steps[-1] for series in sides.values()))
        lr = np.minimum(np.arange(1, steps + 1) / (0.01 * steps), 1.0) * 1e-3
        seen = Seen(name, lr, round(0.01 * steps), 4096.0, sides, Series.none())
        assert set(whats(seen)) <= {"forgetting"}, name
        assert bool(whats(seen)) == (sides["upstream"].rise > 0.02), name


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="needs the public curves")
def test_public_curves_have_nothing() -> None:
    for path in sorted(PUBLIC.glob("*.csv")):
        assert whats(of_csv(path, Logged())) == [], path.name


def test_another_trainers_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "theirs.csv"
    rows = [f"{t},{1e-4},{3.1 + 0.002 * t},{3.2 + 0.01 * t},3.0" for t in range(0, 200, 10)]
    path.write_text("step,lr,downstream_loss,upstream_loss,train_loss\n" + "\n".join(rows))
    diagnose_all([str(path), "tokens_per_step=1000"])
    said = capsys.readouterr().out
    assert said.startswith("theirs: 190 of 190 steps, 190k tokens\n  1. the LR is too hot for the budget: downstream")
    assert "  2. forgetting: the loss on the old data rose by 1.900 (3.200 -> 5.100)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a run's folder, a sweep's, or a CSV file"),
        (["nowhere"], "no such run, folder or CSV file"),
        (["warmup=3"], "unknown option, did you mean 'warmup_steps'?"),
        (["--watch"], "unknown option"),
    ],
)
def test_what_cannot_be_diagnosed(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(arguments)
