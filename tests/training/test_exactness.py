from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from rewarm.config.schema import Config, TrainConfig
from rewarm.errors import UserError
from rewarm.model.losses import TokenLoss
from rewarm.runs.manifest import Chosen, Conditions, Manifest
from rewarm.training.exactness import be_deterministic, changed, conditions, kept_threads
from rewarm.training.setup import set_up_host
from tests.training.conftest import Build
from tests.training.test_loop import TINY


def test_a_run_that_goes_on_keeps_its_threads_unless_others_are_asked_for_or_there_are_fewer_cores() -> None:
    assert kept_threads(None, 1, {}) == 1
    assert kept_threads(None, None, {}) is None
    assert kept_threads(2, 1, {}) == 2
    assert kept_threads(None, 1, {"OMP_NUM_THREADS": "2"}) is None
    assert kept_threads(None, 100_000, {}) is None


def test_the_cpu_counts_where_it_computes_and_what_was_not_recorded_counts_as_the_same() -> None:
    now = conditions(torch.device("cpu"))

    def found(before: Conditions, now: Conditions) -> set[str]:
        return set(changed(Manifest(conditions=before), Manifest(conditions=now)))

    assert found(now, now) == set()
    assert found(Conditions(rewarm=now.rewarm), now) == set()
    before = replace(now, threads=(now.threads or 0) + 1, cpu="another", torch="2.0")
    assert found(before, now) == {"threads", "cpu", "torch"}
    assert found(replace(before, device="NVIDIA H100"), replace(now, device="NVIDIA H100")) == {"torch"}
    chosen = [Manifest(chosen=Chosen("bf16", size), conditions=now) for size in (4, 2)]
    assert changed(*chosen) == {"micro_batch_size": [4, 2]}


@pytest.fixture
def determinism() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch of its own code
@pytest.mark.usefixtures("determinism")
def test_compiled_gradients_of_embeddings_are_not_added_up_as_threads_come() -> None:
    """Without this, runs of the same config differed in their last bits from the second step on."""
    set_up_host(TrainConfig(), torch.device("cpu"))
    embedding = torch.nn.Embedding(64, 16)
    torch.compiler.reset()
    compiled = torch.compile(lambda tokens: (embedding(tokens) * 2).sum(), dynamic=False)
    _, codes = run_and_get_code(lambda: compiled(torch.zeros(8, dtype=torch.int64)).backward())
    assert len(codes) == 2
    assert not [code for code in codes if "atomic_add" in code]


@pytest.mark.usefixtures("determinism")
def test_what_cannot_be_deterministic_says_so_in_one_line(small: Callable[..., Config], make_loop: Build) -> None:
    loop, _ = make_loop(small(*TINY))

    class Other(TokenLoss):
        def forward(self, windows: Tensor, factor: Tensor) -> Tensor:
            torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
            return super().forward(windows, factor)

    be_deterministic(wanted=True, strict=True)
    with pytest.raises(UserError, match=r"^train\.deterministic=true: .*leave it out \(put_ does not"):
        replace(loop, token_loss=Other(loop.state.model)).forward_backward()
