"""Several processes, each with a GPU and a part of the model.

Sums over the GPUs are made in the order of their numbers, by each of them from all parts: a ring's order would depend
on where a row lies in the batch. So a row's bits depend on its sequence and on how many processes there are (each part
is rounded to the model's dtype before it is sent), not on its company, nor on which process adds.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from streamproc.engine.gpu.links import Followers, Leader
from streamproc.errors import Usage, one_line

T = TypeVar("T")
Gathered = tuple[tuple[int, ...], torch.dtype]
GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor      # the older name


class OutOfStep(Exception):
    """The process has to end, and all others with it."""


class Ranks:
    """This process among `size`: the first one has `followers`, the others a `leader`."""

    def __init__(self, rank: int, size: int, followers: Followers | None = None, leader: Leader | None = None) -> None:
        self.rank, self.size = rank, size
        self.followers, self.leader = followers, leader
        self._num_gathered = 0

    def check(self, num_kv_heads: int, intermediate: int) -> None:
        """Raises Usage where the model cannot be shared out evenly."""
        for number, what in ((num_kv_heads, "heads of K and V"), (intermediate, "columns of its MLP")):
            if number % self.size:
                raise Usage(f"engine: {self.size} processes cannot share the model's {number} {what}; "
                            f"start torchrun with a number that divides {number}")

    def part(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This process's part of a weight; the whole, where it is alone."""
        if self.size == 1:
            return tensor.detach()
        return tensor.detach().tensor_split(self.size, dim)[self.rank].contiguous()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of what the processes have, in float32, rounded once."""
        if self.size == 1:
            return tensor
        parts = self._gathered(tensor)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        return total.to(tensor.dtype)

    def joined(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """[rows, columns of all processes side by side]; sizes: how many columns each has."""
        if self.size == 1:
            return tensor
        parts = self._gathered(torch.nn.functional.pad(tensor, (0, max(sizes) - tensor.shape[1])))
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)

    def firsts(self, tensor: Tensor) -> Tensor:
        """What the first process has, where others may have something else of the same shape."""
        return tensor if self.size == 1 else self._gathered(tensor)[0]

    def _gathered(self, tensor: Tensor) -> Tensor:
        """[processes, *tensor.shape]"""
        parts = torch.empty(self.size, *tensor.shape, dtype=tensor.dtype, device=tensor.device)
        if tensor.numel():
            GATHER(parts.flatten(0, 1), tensor.contiguous())
        if not (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):   # capturing gathers nothing yet
            self._num_gathered += 1
        return parts

    def of_first(self, work: Callable[[], T]) -> T:
        """What this work gives in the first process, in all of them; the others do not do it."""
        if self.leader:
            found: T = self.leader.told()
            return found
        found = work()
        if self.followers:
            self.followers.tell(found)
        return found

    @contextmanager
    def in_step(self, gathered: Callable[[], Sequence[Gathered]], device: torch.device) -> Iterator[None]:
        """A step, or its beginning, in which every process gathers these tensors, in this order.

        Where it fails here, the others get zeros for the rest, and can end it: what they compute counts for nothing.
        Raises OutOfStep where not even that can be done: they would wait for ever.
        """
        self._num_gathered = 0
        try:
            yield
        except Exception as problem:
            if self.size > 1:
                traceback.clear_frames(problem.__traceback__)       # zeros need memory, too, and the step holds it
                self._fill(gathered()[self._num_gathered:], device)
            raise

    def _fill(self, gathered: Sequence[Gathered], device: torch.device) -> None:
        try:
            for shape, dtype in gathered:
                self._gathered(torch.zeros(shape, dtype=dtype, device=device))
        except Exception as problem:
            raise OutOfStep(f"this process is out of step with the others: {one_line(problem)}") from None

    def has_gathered(self, num_gathered: int) -> None:
        """So many were gathered since the step began, be it by a graph."""
        self._num_gathered = num_gathered

    def all(self, fact: bool) -> bool:
        """Whether it is so in every process."""
        return bool(self.least(fact))

    def least(self, number: int) -> int:
        """The smallest of what the processes have."""
        if self.size == 1:
            return number
        numbers = [number] * self.size
        dist.all_gather_object(numbers, number)
        return min(numbers)


ALONE = Ranks(0, 1)
