"""What the parts share: the device, the kernels, how large things are, and what was measured of the machine."""

import functools
import os
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from gpu.floors import Ceilings
from gpu.models import Subject, make_subject
from gpu.sizes import FULL, TINY, Sizes
from gpu.timing import Clock, Timer
from streamproc.kernels import reference


@dataclass
class Bench:
    """For one process. `clock` is that of the part which runs."""

    device: torch.device
    sizes: Sizes
    is_tiny: bool
    seed: int
    clock: Clock = field(default_factory=lambda: Clock(0))

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and cells."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @functools.cached_property
    def ops(self) -> ModuleType:
        """What the engine computes with: on a CPU the references, which are faster there than Triton's interpreter."""
        return reference if self.device.type == "cpu" else self.kernels

    @functools.cached_property
    def kernels(self) -> ModuleType:
        """What is compared with the references: Triton's, on a CPU only in its interpreter."""
        if self.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return reference
        from streamproc.kernels import ops  # noqa: PLC0415  # triton is not needed for the references

        return ops

    @functools.cached_property
    def timer(self) -> Timer:
        return Timer(self.device, self.sizes.flushed_bytes)

    @functools.cached_property
    def random(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)

    @functools.cached_property
    def ceilings(self) -> Ceilings:
        """Measured when first asked for."""
        from gpu.ceilings import measure  # noqa: PLC0415  # which takes a Bench

        return measure(self)

    @functools.cached_property
    def subject(self) -> Subject:
        """The large model, made when first asked for."""
        return make_subject(self.sizes.model, self.device, self.dtype, self.ops)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Fresh normal numbers."""
        return torch.randn(*shape, device=self.device, generator=self.random).to(dtype or self.dtype)

    def whole(self, low: int, high: int) -> int:
        """A random whole number, high included."""
        return int(torch.randint(low, high + 1, (), device=self.device, generator=self.random))


def make_bench(device: str, is_tiny: bool, seed: int) -> Bench:
    found = torch.empty(0, device=device).device        # with its number
    if found.type == "cuda":
        torch.cuda.set_device(found)        # where Triton launches
    return Bench(found, TINY if is_tiny else FULL, is_tiny, seed)


def free(bench: Bench) -> None:
    """Memory that no tensor has goes back to the device; graphs of pools that are gone are forgotten: another pool may
    come to lie in their place.
    """
    if "subject" in vars(bench):
        bench.subject.exact.close()
        bench.subject.fast.close()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


Row = dict[str, Any]
