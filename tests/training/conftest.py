"""A loop over text that is the same on every machine, without a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.data.batches import Batches
from rewarm.data.prepare import RunData, batch_spec
from rewarm.data.validation import validation_set
from rewarm.model.init import resolve_init
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import load_model
from rewarm.runs.folder import Line
from rewarm.training.checkpoints.saving import Saver
from rewarm.training.loop import Loop, train
from rewarm.training.precision import LossScaler, resolve_device, resolve_precision
from rewarm.training.profiling import StepProfiler
from rewarm.training.recorder import Recorder
from rewarm.training.signals import StopRequest
from rewarm.training.state import TrainState, make_optimizer
from tests.conftest import make_documents, make_store

Metrics = dict[str, float]
Build = Callable[[Config], tuple[Loop, list[Metrics]]]


class Rows(Recorder):
    """Keeps the lines of metrics in a list."""

    def __init__(self, rows: list[Metrics]) -> None:
        self._rows = rows

    def write(self, metrics: Line) -> None:
        self._rows.append(dict(metrics))


def run(loop: Loop, rows: list[Metrics] | None = None) -> None:
    """Train to the end, and add the lines of metrics to `rows`."""
    train(loop, Rows([] if rows is None else rows), Saver(), StopRequest(), StepProfiler(None, 0))


@pytest.fixture(scope="session")
def fixed_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], RunData]:
    """Return a function from a config to fixed text cut into its batches."""
    folder = tmp_path_factory.mktemp("fixed")

    def build(config: Config) -> RunData:
        new = make_store(folder, make_documents(400, seed=1), name="new")
        old = make_store(folder, make_documents(400, seed=2), name="old")
        spec = batch_spec(config)
        return RunData(
            Batches(spec, new, old if config.replay else None),
            validation_set(make_store(folder, make_documents(40, seed=3), name="old val"), 512, spec.context),
            validation_set(make_store(folder, make_documents(40, seed=4), name="new val"), 512, spec.context),
            {},
        )

    return build


@pytest.fixture
def make_loop(fixed_data: Callable[[Config], RunData]) -> Build:
    """Return a function from a config to a loop over the fixed text, and the list that its metrics go to."""

    def build(config: Config) -> tuple[Loop, list[Metrics]]:
        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        model = load_model(resolve_init("scratch"), config.model, config.seed, device)
        scaler = LossScaler(config.scaler, device, dynamic=precision.scales)
        rows: list[Metrics] = []
        loop = Loop(
            config=config,
            plan=make_plan(config),
            state=TrainState(model, make_optimizer(model, config.optimizer), scaler),
            token_loss=TokenLoss(model),
            data=fixed_data(config),
            precision=precision,
            micro_batch_size=config.train.micro_batch_size or config.train.batch_size,
        )
        return loop, rows

    return build


@pytest.fixture
def assets() -> Path:
    """Return the folder of the tests' fixed files."""
    return Path(__file__).resolve().parents[1] / "assets"
