"""The wheel holds everything that an installation elsewhere needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the wheel was unpacked, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rewarm", *arguments],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_config_and_every_asset_is_in_the_wheel(installed: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "conf", "src/rewarm"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = Path(name)
        inside = Path("rewarm") / path if path.parts[0] == "conf" else path.relative_to("src")
        assert (installed / inside).is_file(), name


def test_an_installation_elsewhere_finds_its_configs_and_its_model(installed: Path) -> None:
    done = run(installed, "schedule", "budget=204800", "run_dir=out")
    assert done.returncode == 0, done.stderr
    assert (installed.parent / "out" / "schedule.csv").is_file()
    assert run(installed, "train", "schedule=cosin").stderr.startswith("rewarm: schedule=cosin: unknown choice")
    program = "from rewarm.model.init import resolve_init; print(resolve_init('builtin').folder)"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(installed))
