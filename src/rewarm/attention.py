"""Causal attention over whole windows: without a mask everywhere, and on the CPU in fewer passes over memory.

Windows have no padding, so that causality is all there is to be masked. Compiled, transformers makes a mask all the
same, because it cannot look at the positions of the tokens; and with a mask, torch's fused kernels are the slow ones.

On a CPU, reading and writing take most of a small model's time between the products. transformers' eager attention
goes over all scores again and again, in FP32, over those too that causality throws away; torch's fused kernel is
slower still for short contexts.
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
"""Attention that transformers knows by a name, but no way to make a mask for, gets none."""
FULL_ATTENTION = ("gpt_neox", "llama")
"""The model types known to mask nothing but the later tokens, in all layers."""
QUERIES_AT_ONCE = 256
"""Blocks of later tokens are left out: of 2,048 tokens 56 % of the scores remain. Fewer at once are no faster."""


class _Rotation(torch.autograd.Function):
    """Rotary position embedding (Su et al. 2021, GPT-NeoX's halves): x (…, context, size), cosines and sines alike.

    The gradient is the rotation backwards. Left to autograd it is a sum of padded slices, which compiled take three
    times as long.
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
    """Return x a quarter turn on, of the first `rotated` numbers of each head; the others do not matter."""
    half = rotated // 2
    return torch.cat([-x[..., half:rotated], x[..., :half], x[..., rotated:]], -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x (n, heads, context, size) rotated by its positions.

    `cosine` and `sine` are (1 or n, context, rotated): the first `rotated` numbers of each head are turned.
    """
    rotated, rest = cosine.shape[-1], x.shape[-1] - cosine.shape[-1]
    cosine = nn.functional.pad(cosine, (0, rest), value=1.0)[:, None]
    sine = nn.functional.pad(sine, (0, rest))[:, None]
    turned: Tensor = _Rotation.apply(x, cosine, sine, rotated)  # type: ignore[no-untyped-call]
    return turned


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * query @ key^T) @ value, where each token sees itself and those before.

    All are (n, context, size). The softmax works in FP32 and is rounded once to the type of the products.
    """
    context, parts = query.shape[1], []
    for start in range(0, context, QUERIES_AT_ONCE):
        stop = min(context, start + QUERIES_AT_ONCE)
        later = query.new_full((stop - start, stop), float("-inf")).triu_(start + 1)
        scores = torch.baddbmm(later, query[:, start:stop], key[:, :stop].transpose(1, 2), alpha=scale)
        parts.append(torch.bmm(torch.softmax(scores, -1), value[:, :stop]))
    return torch.cat(parts, 1)


class CausalAttention(GPTNeoXAttention):
    """GPT-NeoX's attention over whole windows. With a cache of earlier tokens it is transformers' own."""

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


AttentionInterface.register(NAME, sdpa_attention_forward)


def use_causal_attention(model: nn.Module, device: torch.device) -> None:
    """Have a model of transformers attend without a mask, in place; on a CPU a GPT-NeoX by our own code.

    Others stay as they are: some mask more than the later tokens. (On a CPU that is eager, faster than SDPA for short
    contexts.)
    """
    any_model = cast("Any", model)
    kind = any_model.config.model_type
    if device.type != "cpu" and kind in FULL_ATTENTION:
        any_model.set_attn_implementation(NAME)
    elif device.type == "cpu" and kind == "gpt_neox" and not any_model.config.attention_dropout:
        any_model.set_attn_implementation(NAME)
        for module in model.modules():
            if type(module) is GPTNeoXAttention:
                module.__class__ = CausalAttention
