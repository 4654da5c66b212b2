"""Buffers between bands that nobody may write to. What is read there is NaN, or an integer that no index can be."""

import math

import torch

BAND = 65536                    # bytes on either side, a multiple of what allocations are aligned to
NAN, SENTINEL = 0xFF, 0x55      # every byte of a band: 0xFF is NaN in all formats


class Guards:
    """Makes buffers on a device, and tells later whether their bands were touched."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._bands: list[tuple[torch.Tensor, int]] = []

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Poisoned: NaN, or 0x5555...; contiguous, and as aligned as a new tensor."""
        filler = NAN if dtype.is_floating_point else SENTINEL
        size = math.prod(shape) * dtype.itemsize
        memory = torch.full((size + 2 * BAND,), filler, dtype=torch.uint8, device=self.device)
        self._bands += [(memory[:BAND], filler), (memory[BAND + size:], filler)]
        return memory[BAND:BAND + size].view(dtype).view(shape)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.empty(*tensor.shape, dtype=tensor.dtype).copy_(tensor)

    def are_untouched(self) -> bool:
        """Of all buffers since the last call, which are forgotten."""
        bands, self._bands = self._bands, []
        return all(bool((band == filler).all()) for band, filler in bands)
