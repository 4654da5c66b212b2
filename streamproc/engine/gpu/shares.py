"""A block's bytes as the processes of one model have them: each the cells of its own heads.

Put together they are those of a single process's block (kv_cache.py): what is saved and loaded is always the whole.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamproc.engine.kv_cache import Layout

Bytes = NDArray[np.uint8]


def cut(data: Any, layout: Layout, size: int) -> list[Bytes]:
    """A whole block's bytes -> those of each of `size` processes, whose blocks have this layout."""
    whole = np.frombuffer(data, np.uint8)
    assert whole.size == layout.block_bytes * size, f"{whole.size} bytes for {size} parts of {layout.block_bytes}"
    cells, scales = _sizes(layout)
    end = 2 * layout.num_layers * size * cells
    parts = whole[:end].reshape(-1, size, cells), whole[end:].reshape(2 * layout.num_layers, size, scales)
    return [np.concatenate([part[:, rank].ravel() for part in parts]) for rank in range(size)]


def put_together(parts: Sequence[Bytes], layout: Layout) -> Bytes:
    """The bytes of each process, in their order -> the whole block's."""
    cells, scales = _sizes(layout)
    end = 2 * layout.num_layers * cells
    kinds = ([part[:end].reshape(-1, cells) for part in parts],
             [part[end:].reshape(2 * layout.num_layers, scales) for part in parts])
    return np.concatenate([np.stack(kind, 1).ravel() for kind in kinds])


def _sizes(layout: Layout) -> tuple[int, int]:
    """Bytes of cells, and of their scales, that lie in a row: a layer's K or V."""
    cells = layout.num_kv_heads * layout.block_size
    return cells * layout.head_dim * int(layout.dtype.itemsize), cells * layout.scale_bytes
