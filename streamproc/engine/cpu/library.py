"""The compiled forward.cpp: built when the package is installed, once for each kind of processor.

Where no compiler was at hand there is none, and torch computes instead.
"""

import ctypes
import hashlib
import struct
import sysconfig
from functools import cache
from pathlib import Path

from streamproc.engine.cpu.tables import CHUNK, Layer, Model, Step

AVX2 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"}     # x86-64-v3, as /proc/cpuinfo calls it
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LAYOUT = 2 * 10_000 + sum(map(ctypes.sizeof, (Model, Layer, Step))) + CHUNK.itemsize      # streamproc_layout()
KINDS: dict[str, set[str]] = {  # by what the processor must have, the fastest first
    "avx512bf16": AVX512 | {"avx512_bf16"}, "avx512": AVX512, "avx2": AVX2, "generic": set(),
}


@cache
def library() -> ctypes.CDLL | None:
    """The fastest one that this processor runs."""
    path = library_path()
    if path is None or is_cut(path):
        return None
    try:
        found = ctypes.CDLL(str(path))
        if found.streamproc_layout() != LAYOUT:
            return None         # of another version; installing the package compiles it anew
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


def library_path() -> Path | None:
    """Where it lies; None where none was built."""
    here, flags = Path(__file__).parent, processor_flags()
    paths = (here / f"_forward_{kind}{SUFFIX}" for kind, needed in KINDS.items() if needed <= flags)
    return next((path for path in paths if path.is_file()), None)


def library_kind() -> str:
    """One of KINDS; empty where there is none."""
    path = library_path()
    return path.name.partition(".")[0].removeprefix("_forward_") if path else ""


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
