"""Memory of the CPU that is read from end to end in every step: huge pages, where the system gives them."""

import contextlib
import ctypes
import math
import mmap

import torch

HUGE = 2**21        # bytes of a page; less is not worth one


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """On the CPU. Raises RuntimeError, as torch does, where there is no such memory."""
    size = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size < HUGE or advice is None:
        return torch.zeros(shape, dtype=dtype)
    try:
        area = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as problem:
        raise RuntimeError(f"can't allocate memory: {size} bytes") from problem
    with contextlib.suppress(OSError):      # a kernel without them: small pages do
        area.madvise(advice)
    found = torch.frombuffer(area, dtype=torch.uint8)
    first = -found.data_ptr() % HUGE
    return found[first:first + size].view(dtype).view(shape)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy."""
    copy = zeros(tuple(tensor.shape), tensor.dtype)
    return copy.copy_(tensor)


def give_back() -> None:
    """What was freed goes to the system, where the C library (glibc) would keep it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
