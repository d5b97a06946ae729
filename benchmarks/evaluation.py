"""What an evaluation takes beside inference of the same model. `python -m benchmarks.evaluation`.

By turns: `rewarm`'s evaluation of a validation set, the forward passes alone (as a transformers user writes them: no
gradient, the same batches and autocast, the mean loss of each batch), and a training step's time for as many tokens.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from rewarm.config.compose import compose_config
from rewarm.data.validation import ValidationSet
from rewarm.model.init import resolve_init
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import load_model
from rewarm.training.evaluation import TOKENS_AT_ONCE, evaluate
from rewarm.training.precision import resolve_device, resolve_precision
from rewarm.training.setup import set_up_host

WINDOWS, CONTEXT = 512, 128


def main() -> None:
    config = compose_config("scale=local")
    device = resolve_device("auto")
    set_up_host(config.train, device)
    precision = resolve_precision("auto", device)
    model = load_model(resolve_init("builtin"), config.model, 0, device)
    token_loss = TokenLoss(model)
    tokens = np.random.default_rng(0).integers(0, 4096, (WINDOWS, CONTEXT + 1))
    domains = np.zeros((WINDOWS, CONTEXT), dtype=np.int64)
    data = ValidationSet(tokens, domains, ("",), np.ones(1))
    windows = torch.from_numpy(tokens).to(device)
    at_once = TOKENS_AT_ONCE[device.type] // CONTEXT

    @torch.no_grad()
    def inference() -> None:
        model.eval()
        for part in windows.split(at_once):
            with precision.autocast():
                logits = model(input_ids=part[:, :-1], use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten()).item()
        model.train()

    def training() -> None:
        for part in windows.split(32):
            with precision.autocast():
                token_loss(part, torch.tensor(1.0 / part.numel(), device=device)).backward()
            model.zero_grad(set_to_none=True)

    ways: dict[str, Callable[[], object]] = {
        "evaluation": lambda: evaluate(token_loss, data, precision, None),
        "inference": inference,
        "training": training,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(6):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_:  # the first one allocates
                seconds[name].append(time.perf_counter() - start)
    print(json.dumps({name: round(windows[:, 1:].numel() / statistics.median(s)) for name, s in seconds.items()}))


if __name__ == "__main__":
    main()
