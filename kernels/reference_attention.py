"""Attention over a list of items in plain torch: what kernels/attention.py computes, item by item, in float64."""

import torch

from streamproc.kernels.attention_configs import Attention
from streamproc.kernels.work import Scratch, Work


def attend(
    query: torch.Tensor, kv: torch.Tensor, scales: torch.Tensor | None, layer: int, work: Work, scratch: Scratch,
    sizes: Attention, scaling: float, window: int | None = None, softcap: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As kernels/attention.py. What the items of a row give is added up with the weights of their softmaxes."""
    if out is None:
        out = torch.zeros_like(query)
    num_rows, num_heads, head_dim = query.shape
    device = query.device
    kv_heads, block_size = kv.shape[3:5]
    asked = query.double().unflatten(1, (kv_heads, -1)).transpose(0, 1)     # [kv_heads, rows, groups, head_dim]
    top = torch.full((kv_heads, num_rows, num_heads // kv_heads), -1e300, dtype=torch.float64, device=device)
    total, found = torch.zeros_like(top), torch.zeros(*top.shape, head_dim, dtype=torch.float64, device=device)
    is_named = torch.zeros(num_rows, dtype=torch.bool, device=device)
    num_whole, num_split, _ = work.counts.tolist()
    for first, count, table, first_tile, _, end_tile in [*work.whole[:num_whole].tolist(),
                                                         *work.split[:num_split].tolist()]:
        rows = work.rows[first:first + count].long()
        is_named[rows] = True
        key = torch.arange(first_tile * sizes.key_tile, end_tile * sizes.key_tile, device=device)
        numbers = work.tables[table + key // block_size].long()
        cells = kv[numbers, layer, :, :, key % block_size].double()
        if scales is not None:
            cells = cells * scales[numbers, layer, :, :, key % block_size][..., None].double()
        keys, values = cells.permute(1, 2, 0, 3)                                        # [kv_heads, keys, head_dim]
        scores = torch.einsum("hrgd,hkd->hrgk", asked[:, rows], keys) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        is_hidden = key > work.positions[rows, None]
        if window is not None:
            is_hidden |= key <= work.positions[rows, None] - window
        scores = scores.masked_fill(is_hidden[:, None], -torch.inf)
        highest = torch.maximum(top[:, rows], scores.amax(-1))
        weights, factor = torch.exp(scores - highest[..., None]), torch.exp(top[:, rows] - highest)
        total[:, rows] = total[:, rows] * factor + weights.sum(-1)
        found[:, rows] = found[:, rows] * factor[..., None] + torch.einsum("hrgk,hkd->hrgd", weights, values)
        top[:, rows] = highest
    result = (found / total[..., None]).transpose(0, 1).flatten(1, 2).to(out.dtype)
    return torch.where(is_named[:, None, None], result, out, out=out)
