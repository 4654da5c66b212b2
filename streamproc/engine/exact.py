"""Is a row's result the same bits whatever else is in the batch, on this machine, for this model?

Checked at start, in milliseconds for a small model, in three parts:
    matmul      the smallest number of rows whose multiples all give a row the same bits (`find_row_multiple`)
    attention   one chunk against the same rows in smaller ones, side by side (`attention_is_exact`)
    the whole   a short sequence in one chunk against pieces beside another sequence (forward.py)
The answer is measured, never assumed: another chip, library or thread count may need another padding, or have none.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from streamproc.engine.attention import Heads
from streamproc.engine.batch import Geometry, build_batch, window_unit
from streamproc.engine.kv_cache import KVCache, Layout
from streamproc.engine.support import Shapes
from streamproc.schedule.plan import Chunk

MULTIPLES = (4, 8, 16, 32, 64)
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 25)     # row counts tried, in multiples
MAX_ROWS = 1024
MAX_FLOPS = 4e9                                     # of the largest product tried: keeps the check short
START, ROWS, CUTS = 440, 160, (1, 3, 8, 64)         # the attention check crosses a tile of keys


def find_row_multiple(model: Any) -> int | None:
    """The smallest padding of rows that makes every matmul of this model exact; None where none does."""
    weights = different_weights(model)
    for multiple in MULTIPLES:
        if all(matmul_is_exact(weight, multiple) for weight in weights):
            return multiple
    return None


def different_weights(model: Any) -> list[torch.Tensor]:
    """One weight of every shape that a linear layer has."""
    linears = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    return list({tuple(linear.weight.shape): linear.weight for linear in linears}.values())


def matmul_is_exact(weight: torch.Tensor, multiple: int) -> bool:
    """Rows of x @ weight.T keep their bits in every tried number of rows and at every tried place."""
    limit = max(4 * multiple, min(MAX_ROWS, int(MAX_FLOPS / (2 * weight.numel()))))
    x = noise((limit // multiple * multiple, weight.shape[1]), weight)
    whole = F.linear(x, weight)
    counts = [step * multiple for step in STEPS if step * multiple < len(x)]
    return all(torch.equal(F.linear(x[i:i + count], weight), whole[i:i + count])
               for count in counts for i in (0, len(x) - count))


def attention_is_exact(shapes: Shapes, like: torch.Tensor, row_multiple: int, block_size: int) -> bool:
    """Rows of one sequence keep their bits in chunks of any size, alone or beside a second sequence."""
    layout = Layout(1, shapes.num_kv_heads, shapes.head_dim, block_size, like.dtype)
    num_rows = window_unit(block_size) + ROWS
    num_blocks = -(-(START + num_rows) // block_size)
    kv = KVCache(layout, 2 * num_blocks, like.device)
    kv.blocks[:-1] = noise((2 * num_blocks, *layout.block_shape), like)
    geometry = Geometry(shapes.num_heads, frozenset(shapes.windows), row_multiple)
    query = noise((shapes.num_heads, num_rows, shapes.head_dim), like)
    table = tuple(range(num_blocks))
    company = Chunk(1, 0, (0,) * 9, tuple(range(num_blocks, 2 * num_blocks)))
    whole = _attend([Chunk(0, START, (0,) * num_rows, table)], query, kv, geometry, shapes.softcap)
    for cut in CUTS:
        for i in range(0, num_rows, max(cut, num_rows // 4)):
            rows = min(cut, num_rows - i)
            chunks = [company, Chunk(0, START + i, (0,) * rows, table)]
            part = torch.cat([query[:, :9], query[:, i:i + rows]], 1)
            outs = _attend(chunks, part, kv, geometry, shapes.softcap)
            if not all(torch.equal(outs[w][9:9 + rows], whole[w][i:i + rows]) for w in geometry.windows):
                return False
    return True


def _attend(chunks: Sequence[Chunk], query: torch.Tensor, kv: KVCache,
            geometry: Geometry, softcap: float | None) -> dict[int | None, torch.Tensor]:
    """The attention of these rows under every window; K and V are what the cache already holds."""
    step = build_batch(chunks, kv, geometry).step
    held = kv.cells.index_select(0, step.write_cells).view(2, kv.layout.num_kv_heads, -1, kv.layout.head_dim)
    return {window: step.attend(Heads(0, query, held[0], held[1], None, window, {}, softcap))
            for window in geometry.windows}


def noise(shape: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    """Seeded normal numbers of `like`'s dtype, on its device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(like.device, like.dtype)
