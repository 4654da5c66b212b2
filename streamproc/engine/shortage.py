"""Errors that say that there is not enough memory, whoever says so."""

import torch


def lacks_memory(problem: BaseException) -> bool:
    """Of a tensor, of CUDA itself (pinned memory, a graph, a first launch), or of the CPU's allocator."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(problem)
    return isinstance(problem, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
