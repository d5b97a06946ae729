"""The loss in chunks is the loss of whole logits, and so are its gradients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from rewarm.errors import UserError
from rewarm.model import losses
from rewarm.model.losses import Teacher, TokenLoss, cross_entropy, linear_head

SIZES = {
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "phi": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "cohere": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
"""GPT-NeoX, one that ties its embeddings, one whose output layer has a bias, and one that scales its logits."""
VOCABULARY = 101


def build(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **SIZES[kind])
    config.pad_token_id = None
    torch.manual_seed(0)
    # Dropout off: two ways of computing the same thing are compared.
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()


def make_windows() -> Tensor:
    return torch.randint(0, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(1))


def plain(model: nn.Module, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), windows[:, 1:].flatten())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[1, 7, 1000])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of the 39 tokens have logits at once: one, some with a rest, all."""
    monkeypatch.setattr(losses, "rows_at_once", lambda _: request.param)
    return int(request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("kind", list(SIZES))
@pytest.mark.usefixtures("rows")
def test_chunks_give_the_loss_and_gradients_of_whole_logits(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model, windows = build(kind, dtype), make_windows()
    token_loss, factor = TokenLoss(model), torch.tensor(3.0, dtype=dtype)
    expected = plain(model, windows)
    torch.testing.assert_close(token_loss.each(windows).flatten(), expected, rtol=tolerance, atol=0)
    ours, theirs = token_loss(windows, factor), expected.sum() * factor
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    ours, theirs = gradients(model, ours), gradients(model, theirs)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=tolerance * gradient.abs().max().item() * 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("rows")
def test_half_precision_is_as_close_to_fp32_as_whole_logits_are(dtype: torch.dtype) -> None:
    model, windows = build("gpt_neox"), make_windows()
    exact = gradients(model, plain(model, windows).sum() * 64)
    with torch.autocast("cpu", dtype=dtype):
        ours = TokenLoss(model)(windows, torch.tensor(64.0))
        whole = plain(model, windows).sum() * 64
    ours, whole = gradients(model, ours), gradients(model, whole)

    def error(found: dict[str, Tensor]) -> float:
        return sum(((found[n] - g).norm() / g.norm()).item() for n, g in exact.items()) / len(exact)

    assert 0 < error(ours) < 1.2 * error(whole)


@pytest.mark.parametrize("way", ["cpu", "others", "compiled"])
@pytest.mark.parametrize("spread", [1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_way_to_differentiate_is_autograds(dtype: torch.dtype, spread: float, way: str) -> None:
    """With the wide spread, probabilities underflow in FP32: losses of hundreds of nats stay exact."""
    ways = {
        "cpu": losses.differentiate_on_cpu,
        "others": losses.differentiate,
        "compiled": torch.compile(losses.differentiate, fullgraph=True, backend="aot_eager"),
    }
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(9, VOCABULARY, generator=generator) * spread).to(dtype)
    wanted, gain = torch.randint(0, VOCABULARY, (9, 1), generator=generator), 0.5
    exact = logits.double().clone().requires_grad_()
    expected = cross_entropy(exact, wanted.flatten()).sum()
    (gradient,) = torch.autograd.grad(expected * gain, exact)
    loss, ours = ways[way](logits.clone(), wanted, gain)
    assert (loss > 1000) == (spread > 1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=tolerance, atol=0)
    assert ours.dtype == dtype
    rounding = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-3}[dtype]
    torch.testing.assert_close(ours.double(), gradient, rtol=rounding, atol=rounding)


def test_no_factor_costs_the_output_layer_a_digit_in_fp16() -> None:
    """Not even one so small that all gradients of the logits were 0 in FP16, or so large that they were infinite."""
    model, windows = build("gpt_neox"), make_windows()
    names = [n for n, _ in model.named_parameters() if "final_layer_norm" in n or "embed_out" in n or "lm_head" in n]
    assert len(names) == 3
    found = {}
    for factor in (1e-7, 1.0, 1e7):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = TokenLoss(model)(windows, torch.tensor(factor))
        found[factor] = {n: g / factor for n, g in gradients(model, loss).items() if n in names}
    for factor in (1e-7, 1e7):
        for name in names:
            torch.testing.assert_close(found[factor][name], found[1.0][name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e4])
def test_sums_over_many_equal_tokens_do_not_overflow_in_fp16(size: float) -> None:
    """Thousands of the same token at once, and hidden states of any size: each part is a number that FP16 has."""
    n, width = 2000, 8
    hidden, head = torch.full((n, width), size), nn.Linear(width, VOCABULARY)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    targets, factor = torch.full((n,), 3), torch.tensor(1.0)
    parts = (
        hidden,
        head.weight,
        head.bias,
        targets,
        factor,
        torch.float16,
        n,
        losses.differentiate_on_cpu,
        None,
        None,
    )
    losses._ScaledLoss.apply(*parts).backward()  # type: ignore[no-untyped-call]
    expected = torch.full((VOCABULARY,), n / VOCABULARY)
    expected[3] -= n
    torch.testing.assert_close(head.bias.grad, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(head.weight.grad, expected[:, None].expand(-1, width) * size, rtol=2e-3, atol=0)


def test_only_heads_that_are_just_a_linear_layer_are_taken_apart() -> None:
    heads = {kind: linear_head(build(kind)) for kind in SIZES}
    assert {kind for kind, head in heads.items() if head is None} == {"cohere"}


def test_the_head_is_no_second_name_of_a_parameter() -> None:
    model = build("gpt_neox")
    assert [f"model.{name}" for name, _ in model.named_parameters()] == [
        n for n, _ in TokenLoss(model).named_parameters()
    ]


def test_whole_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "rows_at_once", lambda _: 4)
    token_loss, windows = TokenLoss(build("gpt_neox")), make_windows()
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dim() and result.shape[-1] == VOCABULARY:
                largest = max(largest, result.numel() // VOCABULARY)
            return result

    with Watch():
        token_loss(windows, torch.tensor(1.0)).backward()
        token_loss.each(windows)
    assert largest == 4


# Attention's softmax is FP32 in any type, so that more digits than its are not the same every time.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 5e-6)])
@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "phi"])
@pytest.mark.usefixtures("rows")
def test_a_teacher_adds_the_gradient_of_its_divergence_and_not_the_loss(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, windows = build(kind, dtype), make_windows()
    torch.manual_seed(3)
    start = build(kind, dtype)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(torch.randn_like(parameter))
    teacher = Teacher.of(start, 0.7)
    factor = torch.tensor(3.0, dtype=dtype)
    loss = TokenLoss(model, teacher=teacher)(windows, factor)
    ours = gradients(model, loss)
    expected = plain(model, windows).sum()
    logits = [m(input_ids=windows[:, :-1], use_cache=False).logits.log_softmax(-1) for m in (model, start)]
    apart = nn.functional.kl_div(*logits, reduction="sum", log_target=True)
    torch.testing.assert_close(loss, expected.detach() * factor, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(teacher.divergence.to(dtype), apart.detach(), rtol=1e-5, atol=0)
    for name, gradient in gradients(model, (expected + 0.7 * apart) * factor).items():
        torch.testing.assert_close(ours[name], gradient, rtol=tolerance, atol=tolerance * 100)
    assert all(p.grad is None for p in start.parameters())


def test_the_range_of_fp16_holds_with_a_heavy_teacher() -> None:
    model, start, windows = build("gpt_neox"), build("gpt_neox"), make_windows()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(2)
    found = []
    for context in (torch.autocast("cpu", dtype=torch.float16), nullcontext()):
        with context:
            loss = TokenLoss(model, teacher=Teacher.of(start, 100.0))(windows, torch.tensor(1.0))
        found.append(gradients(model, loss)["gpt_neox.final_layer_norm.weight"])
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2 * float(found[1].abs().max()))


def test_a_teacher_that_shapes_its_logits_is_refused() -> None:
    with pytest.raises(UserError, match=r"anchor\.kl=1: not for a model that shapes its logits"):
        Teacher.of(build("cohere"), 1.0)
