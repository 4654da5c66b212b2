"""Several processes, each with a GPU and a part of the model: torch.distributed, as torchrun starts it.

Sums over the GPUs are made in the order of their numbers, by each of them from all parts: a ring's order would depend
on where a row lies in the batch.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from streamproc.errors import Usage


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size`."""

    rank: int
    size: int

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
        """The sum of what the processes have, rounded once."""
        if self.size == 1:
            return tensor
        parts = torch.empty(self.size, *tensor.shape, dtype=tensor.dtype, device=tensor.device)
        dist.all_gather_into_tensor(parts, tensor.contiguous())
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        return total.to(tensor.dtype)

    def joined(self, tensor: Tensor, sizes: list[int]) -> Tensor:
        """[rows, columns of all processes side by side]; sizes: how many columns each has."""
        if self.size == 1:
            return tensor
        padded = torch.nn.functional.pad(tensor, (0, max(sizes) - tensor.shape[1]))
        parts = torch.empty(self.size, *padded.shape, dtype=tensor.dtype, device=tensor.device)
        dist.all_gather_into_tensor(parts, padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)

    def shared(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]


ALONE = Ranks(0, 1)


def join(device: torch.device) -> Ranks:
    """Meet the processes that torchrun started beside this one; ALONE where there are none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), size)
