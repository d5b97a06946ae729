"""How exact FP16 is: gradients beside FP32's at any batch and loss scale, and 300 steps of training in both.

`python -m benchmarks.fp16` takes the built-in model's shape and text. Text of one's own and a real vocabulary:
`--text PILE.jsonl.gz --tokenizer TOKENIZER.json --model pythia-14m`. On a CPU an FP16 product takes up to a thousand
times as long as FP32's: there they are made in FP32 from FP16 numbers, and their results rounded to FP16, as a GPU
does. All else of FP16 is real; the first line says how far that is from products that are.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rewarm.config.compose import compose_config
from rewarm.config.plan import make_plan
from rewarm.data.prepare import open_data
from rewarm.data.tokenizers import load_tokenizer
from rewarm.model.init import resolve_init
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import load_model
from rewarm.training.evaluation import evaluate
from rewarm.training.loop import Loop
from rewarm.training.precision import SCALED_TOKENS, LossScaler, Precision, resolve_device
from rewarm.training.state import TrainState, make_optimizer

PRODUCTS = {
    *(torch.ops.aten.mm.default, torch.ops.aten.addmm.default),
    *(torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default),
}
BATCHES = (4_096, 65_536, 2_260_992, 4_194_304)
"""Tokens of a step; the third is the paper's."""
SCALES = (0.25, 16.0, 512.0, 4096.0, 2.0**15, 2.0**18, 2.0**21, 2.0**24)


class QuickProducts(TorchDispatchMode):
    """Makes FP16 products in FP32, and rounds what comes out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func not in PRODUCTS or args[0].dtype != torch.float16:
            return func(*args, **(kwargs or {}))
        exact = [a.float() if isinstance(a, Tensor) else a for a in args]
        return func(*exact, **(kwargs or {})).half()


Build = Callable[..., Loop]


def make_build(options: argparse.Namespace) -> Build:
    """Return a function from a precision, a seed and overrides to a loop over the same text."""
    text = ["data=builtin"]
    if options.text:
        text = ["data=files", f"data.upstream={options.text.resolve()}", f"data.downstream={options.text.resolve()}"]
    tokenizer = [f"data.tokenizer={options.tokenizer.resolve()}"] if options.tokenizer else []
    common = [
        *(
            f"model={options.model}",
            "init=scratch",
            *text,
            *tokenizer,
            "data.max_bad_share=0.01",
            "schedule=constant",
        ),
        *(f"train.batch_size={options.tokens // options.context}", f"train.context={options.context}"),
        *(f"budget={options.steps * options.tokens}", "data.validation_tokens=8192", "data.shard_tokens=1M"),
        *(
            "schedule=constant",
            "max_lr=1e-3",
            f"warmup={20 / options.steps}",
            "run_dir=unused",
            "scaler.growth_interval=1000000",
        ),
    ]
    device = resolve_device("auto")

    def build(precision: str, *overrides: str, seed: int = 0) -> Loop:
        config = compose_config(*common, *overrides, f"seed={seed}")
        tokenizer = load_tokenizer(config.data.tokenizer)
        torch.manual_seed(seed)
        model = load_model(resolve_init("scratch"), config.model, seed, device)
        scaler = LossScaler(config.scaler, device, dynamic=precision == "fp16")
        plan = make_plan(config)
        return Loop(
            config=config,
            plan=plan,
            state=TrainState(model, make_optimizer(model, config.optimizer), scaler),
            token_loss=TokenLoss(model),
            data=open_data(config, plan, tokenizer),
            precision=Precision(precision, device),
            micro_batch_size=config.train.batch_size,
        )

    return build


def in_context(loop: Loop) -> contextlib.AbstractContextManager[object]:
    """Return the context in which FP16 products of the loop are quick enough."""
    slow = loop.precision.name == "fp16" and loop.precision.device.type == "cpu"
    return QuickProducts() if slow else contextlib.nullcontext()


def gradient(loop: Loop, tokens_per_step: int) -> dict[str, Tensor]:
    """Return the gradient of the first batch's summed loss, as the optimizer gets it in a step of so many tokens."""
    loop.plan, loop.state.step = replace(loop.plan, tokens_per_step=tokens_per_step), 0
    found: dict[str, Tensor] = {}

    def take(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for name, parameter in loop.state.model.named_parameters():
            assert parameter.grad is not None
            found[name] = parameter.grad * (tokens_per_step / optimizer.grad_scale)  # type: ignore[attr-defined]

    handle = loop.state.optimizer.register_step_pre_hook(take)
    loop.update(loop.forward_backward())
    handle.remove()
    return found


def group(name: str) -> str:
    """Return what a parameter belongs to: the part of a block, or the whole of what is outside of blocks."""
    found = re.search(r"\.(\d+)\.(\w+)", name)
    return f"{found[2]} {found[1]}" if found else name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]


def errors(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> tuple[float, float, str]:
    """Return the relative error of the whole gradient, that of the worst group, and its name."""
    wrong: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for name, value in exact.items():
        wrong[group(name)] += (found[name] - value).double().square().sum().item()
        size[group(name)] += value.double().square().sum().item()
    shares = {name: math.sqrt(wrong[name] / size[name]) for name in size}
    worst = max(shares, key=lambda name: math.inf if math.isnan(shares[name]) else shares[name])
    return math.sqrt(sum(wrong.values()) / sum(size.values())), shares[worst], worst


STILL = ("max_lr=1e-12", "optimizer.clip=1e6", "optimizer.weight_decay=0")
"""With these an update changes nothing."""


def compare_gradients(build: Build, weights: Mapping[str, Tensor]) -> None:
    loops = {precision: build(precision, *STILL) for precision in ("fp32", "fp16")}
    for loop in loops.values():
        loop.state.model.load_state_dict(weights)
    exact = gradient(loops["fp32"], BATCHES[0])
    print("| tokens of a step | scale | of a token | whole gradient | worst part |\n|--:|--:|--:|--:|---|")
    half = loops["fp16"]
    scale = half.state.scaler.scale.item()
    for tokens, at in [(tokens, scale) for tokens in BATCHES] + [(BATCHES[2], s) for s in SCALES]:
        half.state.scaler.scale.fill_(at)
        with in_context(half):
            whole, worst, name = errors(gradient(half, tokens), exact)
        print(f"| {tokens:,} | {at:,g} | {at / SCALED_TOKENS:.3g} | {whole:.3%} | {worst:.2%}, {name} |", flush=True)


def compare_products(build: Build) -> None:
    """Print how far the gradient with quick products is from that with FP16's own, and that from FP32's."""
    tiny = ["model.hidden_size=32", "model.layers=2", "model.heads=2", "model.intermediate_size=64"]
    loops = {p: build(p, *STILL, *tiny, "train.batch_size=1", "train.context=64") for p in ("fp32", "fp16")}
    real, exact = (gradient(loops[p], BATCHES[0]) for p in ("fp16", "fp32"))
    with QuickProducts():
        quick = gradient(loops["fp16"], BATCHES[0])
    print(f"products in FP32, rounded: {errors(quick, real)[0]:.3%} from FP16's own,", end=" ")
    print(f"which is {errors(real, exact)[0]:.3%} from FP32", flush=True)


def compare_training(build: Build, scales: Sequence[float], every: int) -> dict[str, Tensor]:
    """Print the validation losses of FP32, FP32 from another seed, and FP16; return the last weights of the first."""
    loops = {"FP32": build("fp32"), "FP32, other seed": build("fp32", seed=1)}
    loops |= {f"FP16, scale {scale:g}": build("fp16", f"scaler.init_scale={scale}") for scale in scales}
    print(f"| step | {' | '.join(loops)} |\n|--:|{'--:|' * len(loops)}")
    for step in range(0, loops["FP32"].plan.steps + 1, every):
        losses = []
        for loop in loops.values():
            with in_context(loop):
                while loop.state.step < step:
                    loop.update(loop.forward_backward())
                losses.append(evaluate(loop.token_loss, loop.data.downstream, loop.precision, None)["loss"])
        print(f"| {step} | {' | '.join(f'{loss:.4f}' for loss in losses)} |", flush=True)
    for name, loop in loops.items():
        print(f"{name}: {loop.state.scaler.skipped.item()} steps skipped")
    return loops["FP32"].state.model.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file or folder of text; the built-in text where not given")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, for text of your own")
    parser.add_argument("--model", default="tiny", help="one of conf/model, whose shape is taken")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, help="steps between two lines of losses")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens that go through the model in a step")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--scales", type=float, nargs="*", default=[4096.0, 15.0], help="loss scales to train with")
    options = parser.parse_args()
    build = make_build(options)
    compare_products(build)
    print("\nBefore training:")
    compare_gradients(build, build("fp32").state.model.state_dict())
    print("\nValidation losses:")
    trained = compare_training(build, options.scales, options.every)
    print("\nAfter it:")
    compare_gradients(build, trained)


if __name__ == "__main__":
    main()
