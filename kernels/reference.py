"""Paged attention as plainly as it can be said: the specification that every other one is tested against."""

import math
from collections.abc import Sequence

import torch


def paged_attention(query: torch.Tensor, blocks: torch.Tensor, block_table: Sequence[int], start: int,
                    window: int | None = None) -> torch.Tensor:
    """Causal attention of one sequence's rows over its cells, scaled by 1 / sqrt(head_dim), in float64.

    query: [rows, heads, head_dim] at positions start, start + 1, ...
    blocks: [num_blocks, 2 (K, V), kv_heads, block_size, head_dim], one layer's
    window: a row sees its own position and window - 1 before it; None: all before it
    -> [rows, heads, head_dim] in float64
    """
    rows, heads, head_dim = query.shape
    kv_heads, block_size = blocks.shape[2:4]
    out = torch.empty(rows, heads, head_dim, dtype=torch.float64)
    for row in range(rows):
        position = start + row
        first = 0 if window is None else max(0, position - window + 1)
        seen = range(first, position + 1)
        cells = torch.stack([blocks[block_table[p // block_size], :, :, p % block_size] for p in seen]).double()
        for head in range(heads):
            keys, values = cells[:, 0, head * kv_heads // heads], cells[:, 1, head * kv_heads // heads]
            scores = keys @ query[row, head].double() / math.sqrt(head_dim)
            out[row, head] = torch.softmax(scores, 0) @ values
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """kernels/rms_norm.py, in float64."""
    wide = x.double()
    y = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight.double()
    return _given(y.to(x.dtype), out)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float,
                 out: torch.Tensor | None = None) -> torch.Tensor:
    """kernels/rms_norm.py, in float64."""
    residual.copy_(residual.double() + x.double())
    return _given(rms_norm(residual, weight, eps).to(x.dtype), out)


def gated(gate_up: torch.Tensor, is_gelu: bool, out: torch.Tensor | None = None) -> torch.Tensor:
    """kernels/gated.py, in float64."""
    gate, up = gate_up.double().chunk(2, -1)
    inside = math.sqrt(8 / math.pi) * (gate + 0.044715 * gate ** 3) if is_gelu else gate
    return _given((gate * torch.sigmoid(inside) * up).to(gate_up.dtype), out)      # sigmoid(2 u) is (1 + tanh(u)) / 2


def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
           ) -> torch.Tensor:
    """kernels/matmul.py, in float64."""
    y = x.double() @ weight.double().T
    return _given((y if bias is None else y + bias.double()).to(x.dtype), out)


def _given(y: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return y if out is None else out.copy_(y)
