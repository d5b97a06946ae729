"""Where weights come from: pinned when a run is begun, found again when it goes on, compared when loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rewarm.commands.eval import evaluate_init
from rewarm.config.schema import Config
from rewarm.errors import CheckpointError
from rewarm.model.init import UPSTREAM, pin, resolve_init, resolve_pinned
from rewarm.runs import checkpoint
from rewarm.runs.manifest import Pinned
from rewarm.runs.run import open_run
from rewarm.training.loop import Loop
from rewarm.training.run import run
from tests.conftest import SMALL, make_config
from tests.hub import Hub
from tests.hub.content import MODEL

TINY = ("model.hidden_size=32", "model.layers=1", "model.heads=2", "model.intermediate_size=64")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of ten steps with checkpoints after five and ten."""
    folder = tmp_path_factory.mktemp("trained") / "first"
    run(make_config(*SMALL, *TINY, "init=scratch", f"run_dir={folder}"))
    return folder


def test_what_init_meant_holds_though_the_run_that_it_names_has_grown(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(trained, first)
    config = make_config(*SMALL, *TINY, f"init='{first}'", f"run_dir={second}")

    def killed(_: Loop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    begun = open_run(second).manifest.init
    assert begun is not None
    assert (begun.asked, begun.step, begun.folder) == (str(first), 10, str(first / "checkpoints" / "step-10"))
    run(replace(read(first), budget=16 * 128, extend=True))
    assert resolve_init(str(first)).step == 16
    kept = first / "checkpoints" / "step-10"
    assert not kept.exists(), "retention took it"
    with pytest.raises(CheckpointError, match=r"was begun from \S+step-10, which is gone or holds other weights"):
        run(config)
    shutil.copytree(trained / "checkpoints" / "step-10", kept)
    run(config)
    assert open_run(second).manifest.init == begun
    assert open_run(second).loss("upstream")[1][0] == open_run(trained).loss("upstream")[1][-1]


def read(folder: Path) -> Config:
    return replace(open_run(folder).config, run_dir=str(folder))


def test_weights_are_found_where_the_folders_were_moved_together(trained: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        shutil.copytree(trained, tmp_path / name / "first")
    pinned = pin(resolve_init(f"{tmp_path}/old/first@5"))
    shutil.rmtree(tmp_path / "old")
    moved = replace(pinned, asked=f"{tmp_path}/new/first@5")
    assert resolve_pinned(moved).folder == tmp_path / "new/first/checkpoints/step-5"
    with pytest.raises(CheckpointError, match="gone or holds other weights"):
        resolve_pinned(replace(moved, identity=pin(resolve_init(f"{tmp_path}/new/first@10")).identity))


@pytest.mark.parametrize("init", ["builtin", "builtin@500", "builtin@loss2.9", "scratch"])
def test_the_built_in_checkpoints_are_pinned_by_their_content(init: str) -> None:
    found = resolve_init(init)
    pinned = pin(found)
    assert resolve_pinned(pinned) == found
    if found.folder is not None:
        elsewhere = replace(pinned, folder="/another/installation/step500")
        assert resolve_pinned(elsewhere) == found
        with pytest.raises(CheckpointError):
            resolve_pinned(replace(elsewhere, identity="that of another version"))


def test_a_branch_of_the_hub_is_pinned_by_its_commit(hub: Hub, tmp_path: Path) -> None:
    found = resolve_init(MODEL)
    pinned = pin(found)
    assert pinned.identity == found.commit is not None
    hub.requests.clear()
    assert resolve_pinned(pinned) == found
    assert not hub.requests, "the hub is not even asked"
    gone = replace(pinned, folder=str(tmp_path / str(found.commit)))
    assert resolve_pinned(gone).folder == found.folder


def test_a_folder_of_others_is_pinned_by_its_files(tmp_path: Path) -> None:
    shutil.copytree(UPSTREAM / "step500", tmp_path / "weights")
    (tmp_path / "weights" / "manifest.json").write_text("[]")  # not rewarm's
    pinned = pin(resolve_init(str(tmp_path / "weights")))
    assert resolve_pinned(pinned).folder == tmp_path / "weights"
    with (tmp_path / "weights" / "model.safetensors").open("r+b") as file:
        file.seek(-7, 2)
        file.write(b"\1")
    with pytest.raises(CheckpointError, match="put it back, or begin anew in another run_dir"):
        resolve_pinned(pinned)


def test_a_manifest_of_before_identities_names_its_folder(trained: Path) -> None:
    folder = trained / "checkpoints" / "step-5"
    assert resolve_pinned(Pinned(str(trained), str(folder))).folder == folder


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_neither_evaluated_nor_started_from(trained: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(trained, tmp_path / "first")
    file = tmp_path / "first" / "checkpoints" / "step-10" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)
    config = make_config(*SMALL, *TINY, f"init='{tmp_path / 'first'}'", f"run_dir={tmp_path / 'second'}")
    for verb in (evaluate_init, run):
        with pytest.raises(CheckpointError, match=r"step-10.*(checksum differs|cannot be read)"):
            verb(config)


def test_each_file_of_a_checkpoint_is_compared_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    digest: Callable[[Path], str] = checkpoint.file_digest

    def counted(path: Path) -> str:
        hashed.append(path)
        return digest(path)

    monkeypatch.setattr(checkpoint, "file_digest", counted)
    evaluate_init(make_config(*SMALL, *TINY, f"init='{trained}'"))
    files = len(checkpoint.read_manifest(trained / "checkpoints" / "step-10")["files"])
    assert len(hashed) == files
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    (again / "summary.json").unlink()
    hashed.clear()
    run(read(again))
    assert len(hashed) == files, "a run that goes on from its own"
    hashed.clear()
    run(make_config(*SMALL, *TINY, f"init='{trained}'", "init_optimizer=true", f"run_dir={tmp_path / 'next'}"))
    assert len([path for path in hashed if path.is_relative_to(trained)]) == files
