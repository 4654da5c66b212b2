"""Which tokens may come: a bit for each of the vocabulary."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.uint32]                # [ceil(vocabulary / 32)] a bit a token, the lowest first
Rows = list[Row | None]                 # by sample of a step; None: every token may come
Masks = Callable[[], Rows]              # waits until they are there


def unpacked(row: Row, size: int) -> NDArray[np.bool_]:
    """[size] whether a token is allowed."""
    bits = np.unpackbits(row.astype("<u4").view(np.uint8), bitorder="little", count=min(size, row.size * 32))
    return np.pad(bits, (0, size - bits.size)).astype(np.bool_)
