"""Causal attention over whole windows: without a mask on GPUs, and on the CPU in fewer passes over memory.

Windows have no padding, so that only later tokens must be masked. transformers still builds a mask when the model is
compiled, because it cannot see the positions of the tokens then, and torch's fused kernels are slower with a mask.

On a CPU, reading and writing memory take most of a small model's time. transformers' eager attention passes several
times over all scores in FP32, including those that causality throws away. torch's fused kernel is slower still for
short contexts.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention

NAME = "sdpa_without_mask"
"""transformers builds no mask for an implementation registered under a name it has no mask function for."""
FULL_ATTENTION = ("gpt_neox", "llama", "mistral", "olmo2", "qwen2", "qwen3")
"""Model types whose layers mask nothing but later tokens, where their config sets no sliding window."""
QUERIES_AT_ONCE = 256
"""Queries whose scores are computed together. Scores of later blocks are skipped: 56 % remain of 2,048 tokens.
Smaller blocks are no faster."""


class _Rotation(torch.autograd.Function):
    """Rotary position embedding (Su et al. 2021, GPT-NeoX's halves): x (…, context, size), cosines and sines alike.

    The gradient is the rotation by the negative angle. autograd would make it a sum of padded slices, which takes
    three times as long when compiled.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor, rotated: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(cosine, sine)
        ctx.rotated = rotated
        return (x * cosine + _turned(x, rotated) * sine).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        cosine, sine = ctx.saved_tensors
        return (grad * cosine - _turned(grad * sine, ctx.rotated)).to(grad.dtype), None, None, None


def _turned(x: Tensor, rotated: int) -> Tensor:
    """Return the first `rotated` numbers of each head turned by 90 degrees; the caller multiplies the others by 0."""
    half = rotated // 2
    return torch.cat([-x[..., half:rotated], x[..., :half], x[..., rotated:]], -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x (n, heads, context, size) rotated by its positions.

    `cosine` and `sine` are (1 or n, context, rotated). Only the first `rotated` numbers of each head are turned.
    """
    rotated, rest = cosine.shape[-1], x.shape[-1] - cosine.shape[-1]
    cosine = nn.functional.pad(cosine, (0, rest), value=1.0)[:, None]
    sine = nn.functional.pad(sine, (0, rest))[:, None]
    turned: Tensor = _Rotation.apply(x, cosine, sine, rotated)  # type: ignore[no-untyped-call]
    return turned


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * query @ key^T) @ value, where each token sees itself and those before it.

    All are (n, context, size). The softmax computes in FP32 and rounds once, to the type of the products.
    """
    context, parts = query.shape[1], []
    for start in range(0, context, QUERIES_AT_ONCE):
        stop = min(context, start + QUERIES_AT_ONCE)
        later = query.new_full((stop - start, stop), float("-inf")).triu_(start + 1)
        scores = torch.baddbmm(later, query[:, start:stop], key[:, :stop].transpose(1, 2), alpha=scale)
        parts.append(torch.bmm(torch.softmax(scores, -1), value[:, :stop]))
    return torch.cat(parts, 1)


class CausalAttention(GPTNeoXAttention):
    """GPT-NeoX's attention over whole windows. With a mask or a cache of earlier tokens it is transformers' own.

    When transformers changes the signature or the attributes of `GPTNeoXAttention`, the tests of this module fail:
    adapt `forward` to it, or delete this class and everything above it but `NAME` and `FULL_ATTENTION`. Training then
    uses transformers' eager attention on CPUs, with the same results.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,  # noqa: ANN401  # transformers' own objects
        layer_past: Any = None,  # noqa: ANN401
        position_embeddings: Any = None,  # noqa: ANN401
        **others: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output (n, context, hidden size), and no weights."""
        if attention_mask is not None or layer_past is not None:
            result: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, layer_past, position_embeddings, **others
            )
            return result
        n, context, hidden_size = hidden_states.shape
        joint = self.query_key_value(hidden_states).view(n, context, -1, 3 * self.head_size).transpose(1, 2)
        query, key, value = joint.chunk(3, -1)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        output = attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), self.scaling)
        return self.dense(output.view(query.shape).transpose(1, 2).reshape(n, context, hidden_size)), None


def use_causal_attention(model: nn.Module, device: torch.device) -> None:
    """Let a model of transformers attend without a mask, in place: by SDPA, or a GPT-NeoX on a CPU by our own code.

    Models that mask more than later tokens, in any layer, keep transformers' attention. So do other models on a CPU,
    where eager attention is faster than SDPA for short contexts.
    """
    any_model = cast("Any", model)
    config = any_model.config
    kind = config.model_type
    AttentionInterface.register(NAME, sdpa_attention_forward)
    if device.type != "cpu" and kind in FULL_ATTENTION and getattr(config, "sliding_window", None) is None:
        any_model.set_attn_implementation(NAME)
    elif device.type == "cpu" and kind == "gpt_neox":
        layers = [module for module in model.modules() if type(module) is GPTNeoXAttention]
        if any(layer.attention_dropout for layer in layers):
            return
        any_model.set_attn_implementation(NAME)
        for layer in layers:
            # A module put around this one would rename its parameters, and building it anew would draw and copy
            # weights again. The subclass adds no state, so that the instance can become one of it.
            layer.__class__ = CausalAttention
