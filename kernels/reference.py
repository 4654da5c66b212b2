"""What the kernels compute, as plainly as it can be said in torch: the specification that they are tested against.

All functions have the signatures of kernels/ops.py, which the engine can use instead of them.
"""

import math
from collections.abc import Sequence

import torch

from streamproc.kernels.attention_configs import Attention, Tile
from streamproc.kernels.reference_attention import attend
from streamproc.kernels.work import make_scratch

NAME = "reference kernels"

__all__ = [
    "NAME", "add_rms_norm", "attend", "attention_sizes", "copy_blocks", "digest", "gated", "gather_blocks", "greedy",
    "make_scratch", "matmul", "paged_attention", "rms_norm", "rotary_write", "scatter_blocks",
]  # fmt: skip


def attention_sizes(device: torch.device, head_dim: int, is_involved: bool = False) -> Attention:
    """Of any device and any heads: they change no bit here."""
    return Attention(64, 256, Tile(512, 1, 1), Tile(256, 1, 1), least_whole=32)


def digest(device: torch.device) -> str:
    return str(device.type)


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
    out = torch.empty(rows, heads, head_dim, dtype=torch.float64, device=query.device)
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


def rotary_write(qkv: torch.Tensor, cells: torch.Tensor, positions: torch.Tensor, cosines: torch.Tensor | None,
                 sines: torch.Tensor | None, kv: torch.Tensor, scales: torch.Tensor | None, layer: int, num_heads: int,
                 query_norm: torch.Tensor | None = None, key_norm: torch.Tensor | None = None, eps: float = 0.0,
                 out: torch.Tensor | None = None) -> torch.Tensor:
    """kernels/rotary.py, in float64; what is quantised is rounded to float32 before."""
    kv_heads, block_size, head_dim = kv.shape[3:]
    heads = qkv.double().unflatten(-1, (-1, head_dim))
    query, key, value = heads.split([num_heads, kv_heads, kv_heads], 1)
    if query_norm is not None and key_norm is not None:
        query, key = rms_norm(query, query_norm, eps), rms_norm(key, key_norm, eps)
    if cosines is not None and sines is not None:
        cos, sin = cosines[positions].double()[:, None], sines[positions].double()[:, None]
        query, key = turned(query, cos, sin), turned(key, cos, sin)
    is_written = cells >= 0
    block, slot = cells[is_written] // block_size, cells[is_written] % block_size
    for part, x in enumerate((key[is_written], value[is_written])):
        if scales is None:
            kv[block, layer, part, :, slot] = x.to(kv.dtype)
        else:
            codes, scale = quantized(x.float(), kv.dtype)
            kv.view(torch.uint8)[block, layer, part, :, slot] = codes.view(torch.uint8)
            scales[block, layer, part, :, slot] = scale
    return _given(query.to(qkv.dtype), out)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x: [rows, heads, head_dim]; cos, sin: [rows, 1, rotated / 2]."""
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def quantized(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [..., head_dim] float32 -> codes [..., head_dim] of int8 or float8_e4m3fn, and their scales [...] float32."""
    largest = 127.0 if dtype == torch.int8 else 448.0
    scale = torch.where(x.isnan(), torch.inf, x.abs()).amax(-1) / largest
    is_usual = ((scale > 0) & (scale < torch.inf))[..., None]
    ratio = torch.where(is_usual, x / torch.where(is_usual, scale[..., None], 1), 0).clamp(-largest, largest)
    return (ratio.round() if dtype == torch.int8 else ratio).to(dtype), scale


def gather_blocks(pool: torch.Tensor, block_ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """kernels/blocks.py"""
    return _given(pool[block_ids], out)


def scatter_blocks(pool: torch.Tensor, block_ids: torch.Tensor, blocks: torch.Tensor) -> None:
    """kernels/blocks.py"""
    pool[block_ids] = blocks


def copy_blocks(pool: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """kernels/blocks.py"""
    pool[destinations] = pool[sources]


def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
           ) -> torch.Tensor:
    """kernels/matmul.py, in float64."""
    y = x.double() @ weight.double().T
    return _given((y if bias is None else y + bias.double()).to(x.dtype), out)


def greedy(logits: torch.Tensor, mask: torch.Tensor | None = None, masked: torch.Tensor | None = None
           ) -> tuple[torch.Tensor, torch.Tensor]:
    """kernels/argmax.py"""
    ids = torch.arange(logits.shape[1], device=logits.device)
    is_allowed = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
    if mask is not None and masked is not None:
        is_allowed = (mask[masked][:, ids // 32] >> (ids % 32) & 1).bool() | (masked < 0)[:, None]
    wide = logits.float()
    best = torch.where(is_allowed, wide, -torch.inf).amax(1)
    found = torch.where(is_allowed & (wide == best[:, None]), ids, len(ids)).amin(1).int()
    return torch.where(found == len(ids), -1, found), torch.where(wide.isnan().any(1), torch.nan, best)


def _given(y: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return y if out is None else out.copy_(y)
