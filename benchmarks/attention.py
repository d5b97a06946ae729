"""transformers' eager attention, torch's SDPA, and rewarm's own, by turns.

`python -m benchmarks.attention [--compile]`: forward and backward of the local scale's model in BF16, as many
tokens at every context.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention

from rewarm.config.compose import compose_config
from rewarm.model.attention import CausalAttention
from rewarm.model.init import resolve_init
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import load_model
from rewarm.training.compiling import compile_model
from rewarm.training.precision import resolve_device, resolve_precision
from rewarm.training.setup import set_up_host

TOKENS = 8192


def build(way: str, context: int, *, compiled: bool) -> TokenLoss:
    config = compose_config("scale=local", f"model.max_context={context}", f"train.context={context}")
    device = torch.device("cpu")
    set_up_host(config.train, device)
    model = load_model(resolve_init("scratch"), config.model, 0, device)
    if way != "rewarm":
        model.set_attn_implementation(way)  # type: ignore[operator]
        for module in model.modules():
            if isinstance(module, CausalAttention):
                module.__class__ = GPTNeoXAttention
    token_loss = TokenLoss(model)
    if compiled:
        compile_model(token_loss, by_block=False)
    return token_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    precision = resolve_precision("bf16", resolve_device("cpu"))
    print("| context | eager | SDPA | rewarm |\n|---|--:|--:|--:|")
    for context in (128, 512, 2048):
        torch.compiler.reset()
        windows = torch.randint(0, 4096, (TOKENS // context, context + 1))
        ways = {way: build(way, context, compiled=options.compile) for way in ("eager", "sdpa", "rewarm")}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(options.rounds + 2):
            for way, token_loss in ways.items():
                start = time.perf_counter()
                with precision.autocast():
                    loss = token_loss(windows, torch.tensor(1 / TOKENS))
                loss.backward()
                token_loss.zero_grad(set_to_none=True)
                if round_ > 1:  # the first ones compile and allocate
                    seconds[way].append(time.perf_counter() - start)
        print(f"| {context} | " + " | ".join(f"{1e3 * statistics.median(s):.0f} ms" for s in seconds.values()) + " |")


if __name__ == "__main__":
    main()
