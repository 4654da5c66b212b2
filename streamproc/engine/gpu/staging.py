"""What a step brings to the device, and what it brings back: pinned memory, one copy each way."""

import numpy as np
import torch
from torch import Tensor

LEAST = 2**14


class Staging:
    """`numbers` on the CPU, int32, and `on_device`, where `upload` copies them: a place that only `reserve` changes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_pinned = device.type == "cuda"
        self.numbers = self._empty(0)
        self.on_device = self.numbers
        self._back = self.numbers
        self._event = torch.cuda.Event() if self.is_pinned else None

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=self.is_pinned)

    def reserve(self, size: int) -> bool:
        """Have room for so many numbers -> whether their place on the device is another one now."""
        if size <= len(self.numbers):
            return False
        room = LEAST
        while room < size:
            room *= 2
        self.numbers = self._empty(room)
        self.on_device = torch.zeros(room, dtype=torch.int32, device=self.device)
        return True

    def upload(self, size: int) -> None:
        """Begin to copy the first `size` numbers; they may be overwritten once something was downloaded."""
        self.on_device[:size].copy_(self.numbers[:size], non_blocking=True)

    def sent(self, array: np.ndarray) -> Tensor:
        """A copy on the device."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_pinned else tensor

    def download(self, ids: Tensor, logits: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `size` of both, once all that was begun before is done."""
        if len(self._back) < 2 * size:
            self._back = self._empty(2 * max(size, LEAST))
        both = torch.stack((ids[:size], logits[:size].view(torch.int32)))
        back = self._back[:2 * size].view(2, size)
        back.copy_(both, non_blocking=True)
        if self._event:
            self._event.record()
            self._event.synchronize()
        found = back.numpy().copy()
        return found[0], found[1].view(np.float32)
