"""The compiled forward.cpp: built when the package is installed, once for each kind of processor.

Where no compiler was at hand there is none, and torch computes instead.
"""

import ctypes
import hashlib
import itertools
import struct
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple

from streamproc.engine.cpu.tables import CHUNK, Layer, Model, Step

AVX2 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"}     # x86-64-v3, as /proc/cpuinfo calls it
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LAYOUT = 2 * 10_000 + sum(map(ctypes.sizeof, (Model, Layer, Step))) + CHUNK.itemsize      # streamproc_layout()
KINDS: dict[str, set[str]] = {  # by what the processor must have, the fastest first
    "avx512bf16": AVX512 | {"avx512_bf16"}, "avx512": AVX512, "avx2": AVX2, "generic": set(),
}


class Loaded(NamedTuple):
    """A library in this process, and its file."""

    code: ctypes.CDLL
    path: Path


def library() -> ctypes.CDLL | None:
    """The fastest one that this processor runs."""
    found = best()
    return found.code if found else None


def library_path() -> Path | None:
    """Where it lies; None where none was built, or all are damaged."""
    found = best()
    return found.path if found else None


def library_kind() -> str:
    """One of KINDS; empty where there is none."""
    path = library_path()
    return path.name.partition(".")[0].removeprefix("_forward_") if path else ""


def damaged_paths() -> list[Path]:
    """Those that should be faster than the one that runs, and cannot be used."""
    return list(itertools.takewhile(lambda path: path != library_path(), library_paths()))


@cache
def best() -> Loaded | None:
    """A damaged one, or one of another version, is passed over."""
    loaded = ((load(path), path) for path in library_paths())
    return next((Loaded(code, path) for code, path in loaded if code), None)


def library_paths() -> list[Path]:
    """Every one that was built and that this processor runs, the fastest first."""
    flags = processor_flags()
    paths = (kind_path(kind) for kind, needed in KINDS.items() if needed <= flags)
    return [path for path in paths if path.is_file()]


def load(path: Path) -> ctypes.CDLL | None:
    """None where it is damaged or of another version; installing the package compiles it anew."""
    try:
        if is_cut(path):
            return None
        found = ctypes.CDLL(str(path))
        if found.streamproc_layout() != LAYOUT:
            return None
    except (OSError, AttributeError):
        return None
    for function in (found.streamproc_layers, found.streamproc_sample):
        function.argtypes = [ctypes.c_void_p] * 3
        function.restype = ctypes.c_int
    found.streamproc_team.argtypes = [ctypes.c_int]
    found.streamproc_team.restype = ctypes.c_void_p
    found.streamproc_disband.argtypes = [ctypes.c_void_p]
    found.streamproc_disband.restype = None
    return found


def is_cut(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections does; loading such a one can kill the process."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return False        # whatever it is, it is refused by the system's loader or whole
    offset, (size, count) = struct.unpack_from("<Q", head, 0x28)[0], struct.unpack_from("<HH", head, 0x3A)
    return bool(path.stat().st_size < offset + size * count)


def kind_path(kind: str) -> Path:
    """Where the library of this kind is, if it was built."""
    return Path(__file__).parent / f"_forward_{kind}{SUFFIX}"


def processor_flags() -> set[str]:
    """What this x86 processor can; nothing where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() == "flags"), set())


@cache
def library_fingerprint() -> str:
    """Of the machine code: other code may give other bits."""
    path = library_path()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else ""
