"""What a step brings to the device, and what it brings back: pinned memory, one copy each way.

The next step may be begun while one is on the device: it waits for no more than that its numbers have left.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST = 2**14
MOST_OUT = 2    # steps whose results nobody has taken yet


@dataclass(frozen=True, slots=True)
class Download:
    """Results on their way: [2, samples] int32."""

    back: Tensor
    event: Any      # torch.cuda.Event; None: they are there
    ids: Tensor     # the tokens on the device

    def wait(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and logits, once all that was begun before is done; from any thread."""
        if self.event:
            self.event.synchronize()
        found = self.back.numpy().copy()
        return found[0], found[1].view(np.float32)


class Staging:
    """`numbers` on the CPU, int32, and `on_device`, where `upload` copies them: a place that only `reserve` changes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_pinned = device.type == "cuda"
        self.numbers = self._empty(0)
        self.on_device = self.numbers
        self._backs = [self.numbers] * MOST_OUT
        self._events = [self._event() for _ in range(MOST_OUT)]
        self._has_left = self._event()
        self._turn = 0

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=self.is_pinned)

    def _event(self) -> Any:
        return torch.cuda.Event() if self.is_pinned else None

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
        """Begin to copy the first `size` numbers."""
        self.on_device[:size].copy_(self.numbers[:size], non_blocking=True)
        if self._has_left:
            self._has_left.record()

    def wait_for_upload(self) -> None:
        """Until the numbers may be overwritten: the step that they are of is at its beginning, or past it."""
        if self._has_left:
            self._has_left.synchronize()

    def sent(self, array: np.ndarray) -> Tensor:
        """A copy on the device."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_pinned else tensor

    def download(self, ids: Tensor, logits: Tensor, size: int) -> Download:
        """Begin to copy the first `size` of both. The results of the download before the last one are taken by now."""
        self._turn = (self._turn + 1) % MOST_OUT
        if len(self._backs[self._turn]) < 2 * size:
            self._backs[self._turn] = self._empty(2 * max(size, LEAST))
        back, event = self._backs[self._turn][:2 * size].view(2, size), self._events[self._turn]
        both = torch.stack((ids[:size], logits[:size].view(torch.int32)))
        back.copy_(both, non_blocking=True)
        if event:
            event.record()
        return Download(back, event, both[0])
