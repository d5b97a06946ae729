"""Checkpoints: what is written, what damage is found, what is kept."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rewarm.config.plan import make_plan
from rewarm.config.schema import CheckpointConfig, ModelConfig, OptimizerConfig, ScalerConfig
from rewarm.errors import CheckpointError
from rewarm.model.init import Init
from rewarm.model.weights import load_model
from rewarm.runs.checkpoint import prune
from rewarm.storage import sealed
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.checkpoints.loading import load, load_moments
from rewarm.training.checkpoints.saving import BackgroundSaver
from rewarm.training.checkpoints.snapshot import Snapshot
from rewarm.training.precision import LossScaler
from rewarm.training.state import TrainState, make_optimizer
from tests.conftest import make_config
from tests.training.killing import assert_equal_trees

SHAPE = ModelConfig(
    name="t", init="scratch", peak_lr=1e-3, final_lr=1e-4, vocab_size=64, hidden_size=16, layers=1, heads=2,
    intermediate_size=32, max_context=32,
)  # fmt: skip
CPU = torch.device("cpu")
PLAN = make_plan(make_config())


def make_state(seed: int = 0) -> TrainState:
    model = load_model(Init("scratch", None), SHAPE, seed, CPU)
    return TrainState(model, make_optimizer(model, OptimizerConfig()), LossScaler(ScalerConfig(), CPU, dynamic=True))


def step(state: TrainState) -> None:
    """Do one step that moves everything there is in the state."""
    for p in state.model.parameters():
        p.grad = torch.full_like(p, 0.5)
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-2
    state.optimizer.step()
    state.scaler.update(torch.tensor(float(state.step % 2)))
    state.add(torch.tensor(1.5), torch.tensor(0.5), torch.tensor(0.0))
    state.step, state.tokens = state.step + 1, state.tokens + 128


def save(parent: Path, state: TrainState) -> Path:
    return checkpoints.write(parent, Snapshot.view(state), state.model, None)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2."""
    state = make_state()
    for _ in range(2):
        step(state)
        save(tmp_path, state)
    return tmp_path


def test_a_checkpoint_gives_back_the_whole_state(tmp_path: Path) -> None:
    state = make_state()
    for _ in range(3):
        step(state)
    folder = save(tmp_path, state)
    other = make_state(seed=1)
    other.model = load_model(Init("", folder), SHAPE, 0, CPU)
    other.optimizer = make_optimizer(other.model, OptimizerConfig())
    load(folder, other)
    assert_equal_trees(dict(other.model.state_dict()), dict(state.model.state_dict()))
    assert_equal_trees(other.state_dict(), state.state_dict())


def test_transformers_loads_a_checkpoint(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved / "step-2")
    assert type(model).__name__ == "GPTNeoXForCausalLM"
    assert model.dtype == torch.float32


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, empty, flip_a_bit, Path.unlink)


FILES = ("config.json", "generation_config.json", "manifest.json", "model.safetensors", "state.pt")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_found_and_the_one_before_used(
    saved: Path, name: str, damage: Callable[[Path], None]
) -> None:
    assert {path.name for path in (saved / "step-2").iterdir()} == set(FILES)
    damage(saved / "step-2" / name)
    assert checkpoints.latest(saved) == saved / "step-1"
    kept = [] if (name, damage) == ("manifest.json", Path.unlink) else ["step-2.damaged-1"]
    assert [path.name for path in saved.glob("step-2.*")] == kept


def test_every_bit_of_a_manifest_counts(saved: Path) -> None:
    manifest = saved / "step-2/manifest.json"
    content = manifest.read_bytes()
    for position in range(0, len(content), 17):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            manifest.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                checkpoints.verify(saved / "step-2")


def test_damaged_checkpoints_are_kept_and_not_counted(saved: Path) -> None:
    empty(saved / "step-2/state.pt")
    assert checkpoints.latest(saved) == saved / "step-1"
    assert checkpoints.steps(saved) == [1]
    state = make_state()
    for _ in range(2):
        step(state)
    save(saved, state)
    prune(saved, CheckpointConfig(keep=2), PLAN)
    assert sorted(path.name for path in saved.iterdir()) == ["step-1", "step-2", "step-2.damaged-1"]


def test_no_whole_checkpoint_means_none(saved: Path) -> None:
    for number in (1, 2):
        empty(saved / f"step-{number}/model.safetensors")
    assert checkpoints.latest(saved) is None


def test_retention_keeps_the_last_multiples_and_milestones(tmp_path: Path) -> None:
    for number in range(1, 11):
        (tmp_path / f"step-{number}").mkdir()
        (tmp_path / f"step-{number}/manifest.json").write_text("{}")
    prune(tmp_path, CheckpointConfig(keep=2, keep_every=4), replace(PLAN, milestones=(3,)))
    assert checkpoints.steps(tmp_path) == [3, 4, 8, 9, 10]
    prune(tmp_path, CheckpointConfig(keep=0), PLAN)
    assert checkpoints.steps(tmp_path) == [3, 4, 8, 9, 10]


def test_what_killed_processes_left_is_cleaned_up(saved: Path) -> None:
    (saved / ".step-3.tmp").mkdir()
    (saved / ".step-1.old.tmp").mkdir()
    checkpoints.clean(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["step-1", "step-2"]


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_payload_is_not_executed(saved: Path, protocol: str) -> None:
    mark = saved / "executed"
    if protocol == "torch":
        torch.save({"step": Payload(mark)}, saved / "step-2/state.pt")
    else:
        (saved / "step-2/state.pt").write_bytes(pickle.dumps(Payload(mark), protocol=2))
    with pytest.raises(CheckpointError, match="is not loaded"):
        load(saved / "step-2", make_state())
    with pytest.raises(CheckpointError):
        load_moments(saved / "step-2", make_state(), "x")
    assert not mark.exists()


def test_a_manifest_cannot_point_out_of_its_folder(saved: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((saved / "step-2/config.json").read_bytes())
    path = saved / "step-2/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"]["../outside"] = manifest["files"].pop("config.json")
    path.write_text(json.dumps(sealed(manifest)))
    with pytest.raises(CheckpointError, match=r"names \.\./outside, which lies outside"):
        checkpoints.verify(saved / "step-2")


def test_moments_come_without_the_old_learning_rate(saved: Path) -> None:
    state = make_state(seed=1)
    load_moments(saved / "step-2", state, "x")
    theirs = torch.load(saved / "step-2/state.pt", weights_only=True)["optimizer"]
    assert_equal_trees(state.optimizer.state_dict()["state"], theirs["state"])
    assert {group["lr"] for group in state.optimizer.param_groups} == {0.0}
    assert (state.step, state.tokens) == (0, 0)


def test_moments_of_another_model_are_refused(saved: Path) -> None:
    state = make_state()
    state.model = torch.nn.Linear(3, 3)
    state.optimizer = make_optimizer(state.model, OptimizerConfig())
    with pytest.raises(CheckpointError, match="of another model"):
        load_moments(saved / "step-2", state, "x")


def test_a_background_save_holds_the_state_of_its_moment(tmp_path: Path) -> None:
    state = make_state()
    step(state)
    with BackgroundSaver(state, lambda s: (checkpoints.write(tmp_path, s, state.model, None), None)[1]) as saver:
        expected = Snapshot.view(state).copy()
        saver.save()
        saver.wait_for_copy()
        step(state)
        saver.save()
    written = torch.load(tmp_path / "step-1/state.pt", weights_only=True)
    assert_equal_trees(written, expected.state)
    assert checkpoints.steps(tmp_path) == [1, 2]


def test_background_saves_use_one_copy_of_memory() -> None:
    state = make_state()
    step(state)
    first = Snapshot.view(state).copy()
    where = [t.data_ptr() for t in first.weights.values()]
    step(state)
    second = Snapshot.view(state).copy(first)
    assert [t.data_ptr() for t in second.weights.values()] == where
    assert second.step == 2


def test_what_goes_wrong_in_the_background_is_raised() -> None:
    state = make_state()

    def write(_: object) -> None:
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="no"), BackgroundSaver(state, write) as saver:
        saver.save()


def test_checkpoints_are_as_readable_as_the_rest_and_never_writable_for_all(saved: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (saved / "step-2").iterdir()}
    assert len(set(modes.values())) == 1
    assert not any(mode & 0o002 for mode in modes.values())


def test_a_half_written_checkpoint_is_none(saved: Path) -> None:
    shutil.copytree(saved / "step-2", saved / "step-9")
    (saved / "step-9/manifest.json").unlink()
    assert checkpoints.latest(saved) == saved / "step-2"
