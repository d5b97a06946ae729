"""The micro-batch: how it is chosen, and what happens where it turns out too large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rewarm.config.differences import differing
from rewarm.config.schema import Config
from rewarm.errors import RewarmError
from rewarm.model.losses import TokenLoss
from rewarm.training import microbatch
from rewarm.training.microbatch import divisors, largest_that_fits, next_smaller
from rewarm.training.precision import Precision
from tests.conftest import make_config
from tests.training.conftest import Build, run
from tests.training.test_loop import TINY

Small = Callable[..., Config]


def test_divisors_of_the_papers_batch() -> None:
    assert divisors(1104, 50) == [1, 2, 3, 4, 6, 8, 12, 16, 23, 24, 46, 48]
    assert divisors(7, 0) == [1]


@pytest.mark.parametrize("most", range(50))
def test_the_largest_that_fits_is_found_in_few_tries(most: int) -> None:
    tried: list[int] = []

    def fits(n: int) -> bool:
        tried.append(n)
        return n <= most

    candidates = divisors(1104, 50)
    assert largest_that_fits(candidates, fits) == max((n for n in candidates if n <= most), default=1)
    assert len(tried) <= 4


def test_the_next_smaller_divides_the_batch_and_halves_at_least() -> None:
    assert [next_smaller(1104, n) for n in (48, 23, 3, 2, 1)] == [24, 8, 1, 1, None]


@pytest.mark.parametrize(("context", "expected"), [(128, 32), (2048, 4), (100_000, 1)])
def test_a_cpu_takes_what_its_caches_like(context: int, expected: int) -> None:
    config = make_config(f"train.context={context}", "train.batch_size=32", "model.max_context=100000", "budget=10M")
    model = torch.nn.Module()  # not asked for anything on a CPU
    found = microbatch.choose(config, model, Precision("fp32", torch.device("cpu")))  # type: ignore[arg-type]
    assert found == expected


class OutOfMemory(TokenLoss):
    """A model for which the device has memory for so many sequences at once, and which fails on others half-way."""

    most = 4

    def forward(self, windows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        loss = super().forward(windows, factor)
        if len(windows) > self.most:
            loss.backward()  # type: ignore[no-untyped-call]  # gradients of a failed try must not count
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss


def test_out_of_memory_names_the_micro_batch_with_which_the_same_command_goes_on(
    small: Small, make_loop: Build
) -> None:
    given = ("train.batch_size=12", "budget=3840", *TINY)
    loop, _ = make_loop(small(*given))
    loop = replace(loop, token_loss=OutOfMemory(loop.state.model))
    with pytest.raises(RewarmError, match=r"^train.micro_batch_size=12: does not fit .* train.micro_batch_size=6$"):
        run(loop)
    before, after = (small(*given, f"train.micro_batch_size={n}") for n in (12, 6))
    assert not differing(before, after), "a run in its folder takes the advice"


def test_out_of_memory_with_one_sequence_is_said_in_one_line(small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small(*TINY, "train.micro_batch_size=1"))
    loop = replace(loop, token_loss=OutOfMemory(loop.state.model))
    loop.token_loss.most = 0  # type: ignore[attr-defined]
    with pytest.raises(RewarmError, match=r"^train.context=32: not even one sequence fits .*shorter context"):
        run(loop)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_finds_the_largest_once_and_remembers_it(
    small: Small, make_loop: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(*TINY, "train.batch_size=64", "budget=4096")
    loop, _ = make_loop(config)
    token_loss = TokenLoss(loop.state.model.cuda())
    precision = Precision("fp16", torch.device("cuda"))
    found = microbatch.choose(config, token_loss, precision)
    assert found == 64
    monkeypatch.setattr(microbatch, "largest_that_fits", lambda *_: pytest.fail("was tried again"))
    assert microbatch.choose(config, token_loss, precision) == found
