"""The weights in a model's folder, as the heads of their files tell: checked before any of them is loaded."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from streamproc.config import Engine
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.errors import Usage
from streamproc.memory import CPU_POOL_BYTES, MIB, free_memory_bytes, mib

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
COMPUTABLE = {"F32", "F16", "BF16"}     # as safetensors calls them
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Stored(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: str      # as safetensors calls it
    size: int       # numbers in it


class Place(NamedTuple):
    """Where the weights, so many times, and a pool are to lie at once."""

    name: str
    free_bytes: int | None      # None: not known
    copies: int
    kv_bytes: int


def check_weights(settings: Engine, folder: Path, dtype: torch.dtype, device: torch.device,
                  ranks: Ranks = ALONE) -> None:
    """Raises Usage where the weights are of a dtype that is not computed, or they and the pool do not fit the memory.

    Files that cannot be read are left to the loader, which says why.
    """
    try:
        stored = list(stored_weights(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return
    check_dtypes(stored, settings)
    num_bytes = sum(weight.size for weight in stored) * dtype.itemsize
    num_loaded = 1 if are_mapped(stored, dtype) else ranks.size
    for place in places(settings, device, ranks, num_loaded):
        check_room(settings, num_bytes or pickled_bytes(folder), dtype, place)


def stored_weights(folder: Path) -> Iterator[Stored]:
    """Every tensor of the safetensors files that make up the model; nothing of other formats."""
    index = folder / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {SINGLE}
    for path in (folder / name for name in sorted(names)):
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    part = file.get_slice(name)
                    yield Stored(name, part.get_dtype(), math.prod(part.get_shape()))


def are_mapped(stored: Sequence[Stored], dtype: torch.dtype) -> bool:
    """Whether several processes that load these have them in memory once: as they lie in their files."""
    return bool(stored) and {weight.dtype for weight in stored} == {NAMES[dtype]}


def pickled_bytes(folder: Path) -> int:
    """Weights in torch's own format: as large in memory as their files, give or take their dtype."""
    return sum(path.stat().st_size for path in folder.glob("pytorch_model*.bin"))


def check_dtypes(stored: Sequence[Stored], settings: Engine) -> None:
    """Raises Usage where a number would become another one. Masks and counters, which are no weights, may be anything.

    On a CPU float16 is computed in float32, which holds it.
    """
    odd = [weight for weight in stored if weight.name.endswith(".weight") and weight.dtype not in COMPUTABLE]
    if not odd:
        return
    told = f"{len(odd)} of its weights are stored as {odd[0].dtype}, such as {odd[0].name}"
    if {weight.dtype for weight in odd} != {"F64"}:
        raise Usage(f"engine.model: {settings.model} is not supported: {told}; use one saved in float32, bfloat16 or "
                    "float16")
    if settings.dtype == "auto":
        raise Usage(f"engine.dtype: auto, but {settings.model} is computed in less than it was saved in: {told}; "
                    "set engine.dtype=float32 to round them")


def places(settings: Engine, device: torch.device, ranks: Ranks, num_loaded: int) -> Iterator[Place]:
    """The device, and this machine on the way to it; num_loaded: how often all weights are loaded here.

    What is here serves all processes, and the first one looks at it; each has its part on its device.
    """
    is_cpu = device.type == "cpu"
    pool = settings.kv_bytes or (CPU_POOL_BYTES if is_cpu else 0)
    if ranks.rank == 0:
        copies = num_loaded + is_cpu    # packed for our own code, or shared out, before what was loaded can be let go
        yield Place("this machine", free_memory_bytes(), copies, pool if is_cpu else 0)
    if device.type == "cuda":
        name = str(device) if ranks.size == 1 else f"{ranks.size} x {device}"
        yield Place(name, torch.cuda.mem_get_info(device)[0] * ranks.size, 1, pool)


def check_room(settings: Engine, weight_bytes: int, dtype: torch.dtype, place: Place) -> None:
    free, model = place.free_bytes, settings.model
    if free is None or weight_bytes * place.copies + place.kv_bytes <= free:
        return
    times = f"{place.copies} x " if place.copies > 1 else ""
    weights = f"{times}{mib(weight_bytes + MIB - 1)} of {str(dtype).removeprefix('torch.')} weights"
    has, left_mib = f"{place.name} has {mib(free)} free", (free - weight_bytes * place.copies) // MIB
    if left_mib < 1 or not place.kv_bytes:
        other = ", or engine.dtype=bfloat16" if dtype == torch.float32 else ""
        raise Usage(f"engine.model: {model} does not fit: it takes {weights}, {has}; use a smaller one{other}")
    raise Usage(f"engine.kv_bytes: {mib(place.kv_bytes)} beside {weights} of {model} do not fit, {has}; "
                f"set engine.kv_bytes={left_mib}MiB or less")
