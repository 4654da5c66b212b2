"""Attention over a list of items in plain torch: what kernels/attention.py computes, row by row, in float64."""

import torch
from streamproc.kernels.attention_configs import Attention
from streamproc.kernels.work import Scratch, Work


def attend(
    query: torch.Tensor, kv: torch.Tensor, scales: torch.Tensor | None, layer: int, work: Work, scratch: Scratch,
    sizes: Attention, scaling: float, window: int | None = None, softcap: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As kernels/attention.py. A row's keys are those of all its items, whichever kind they are of."""
    if out is None:
        out = torch.zeros_like(query)
    tile_blocks = sizes.key_tile // kv.shape[4]
    num_whole, num_split, _ = work.counts.tolist()
    blocks_of: dict[int, dict[int, list[int]]] = {}     # by row and tile
    for first, num_rows, table, first_tile, _, end_tile in [*work.whole[:num_whole].tolist(),
                                                            *work.split[:num_split].tolist()]:
        for row in work.rows[first:first + num_rows].tolist():
            for tile in range(first_tile, end_tile):
                begin = table + tile * tile_blocks
                blocks_of.setdefault(row, {})[tile] = work.tables[begin:begin + tile_blocks].tolist()
    for row, tiles in blocks_of.items():
        position = int(work.positions[row])
        first_key = 0 if window is None else max(0, position - window + 1)
        numbers = [block for tile in sorted(tiles) for block in tiles[tile]]
        begin = min(tiles) * sizes.key_tile
        cells = kv[numbers, layer].double()
        if scales is not None:
            cells = cells * scales[numbers, layer][..., None].double()
        keys, values = cells.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, first_key - begin:position + 1 - begin]
        groups = query.shape[1] // keys.shape[0]
        scores = query[row].double().unflatten(0, (-1, groups)) @ keys.transpose(1, 2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = (torch.softmax(scores, -1) @ values).flatten(0, 1).to(out.dtype)
    return out
