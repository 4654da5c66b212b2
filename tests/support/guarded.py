"""Tensors between guard bands. Triton's interpreter reads and writes out of bounds in silence, and so may a GPU: what
is read there is NaN, or an integer that no index can be, and what is written there is found by `check`.
"""

import os

import torch

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET", "1") == "1" else "cuda")
BAND = 8192                             # elements on either side; a multiple of what allocations are aligned to
NAN, SENTINEL = 0xFF, 0x55              # every byte of either is this one; 0xFF is NaN in all formats, e4m3 too

_bands: list[tuple[torch.Tensor, torch.Tensor, int]] = []      # bytes, which of them nobody writes, what they hold


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on DEVICE with the same sizes and strides, whose neighbours, and gaps where it has any, are guarded.

    Floats are surrounded by NaN, integers by 0x5555... The copy is as aligned as a new tensor.
    """
    filler = NAN if tensor.is_floating_point() else SENTINEL
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    memory = torch.full(((span + 2 * BAND) * tensor.element_size(),), filler, dtype=torch.uint8, device=DEVICE)
    is_band = torch.ones(span + 2 * BAND, dtype=torch.bool, device=DEVICE)
    is_band.as_strided(tensor.shape, tensor.stride(), BAND).fill_(False)
    view = memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), BAND)
    view.copy_(tensor)
    _bands.append((memory, is_band.repeat_interleave(tensor.element_size()), filler))
    return view


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A guarded output that holds NaN, or 0x5555..., until somebody writes it."""
    view = guarded(torch.zeros(shape, dtype=dtype))
    filler = NAN if dtype.is_floating_point else SENTINEL
    view.copy_(torch.full((view.element_size(),), filler, dtype=torch.uint8).view(dtype))
    return view


def check() -> None:
    """Fail if a band of any tensor since the last `forget` was written to; and forget them."""
    bands = _bands.copy()
    forget()
    for memory, is_band, filler in bands:
        assert bool((memory[is_band] == filler).all()), "a guard band was written to"


def forget() -> None:
    _bands.clear()
