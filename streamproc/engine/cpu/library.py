"""The compiled forward.cpp: built when the package is installed, once for each kind of processor.

Where no compiler was at hand there is none, and torch computes instead.
"""

import ctypes
import hashlib
from functools import cache
from pathlib import Path

AVX2 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"}     # x86-64-v3, as /proc/cpuinfo calls it
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
KINDS: dict[str, set[str]] = {  # by what the processor must have, the fastest first
    "avx512bf16": AVX512 | {"avx512_bf16"}, "avx512": AVX512, "avx2": AVX2, "generic": set(),
}


@cache
def library() -> ctypes.CDLL | None:
    """The fastest one that this processor runs."""
    path = library_path()
    if path is None:
        return None
    found = ctypes.CDLL(str(path))
    found.streamproc_forward.argtypes = [ctypes.c_void_p] * 3
    found.streamproc_forward.restype = None
    found.streamproc_team.argtypes = [ctypes.c_int]
    found.streamproc_team.restype = ctypes.c_void_p
    found.streamproc_disband.argtypes = [ctypes.c_void_p]
    found.streamproc_disband.restype = None
    return found


def library_path() -> Path | None:
    """Where it lies; None where none was built."""
    here, flags = Path(__file__).parent, processor_flags()
    found = [path for kind, needed in KINDS.items() if needed <= flags
             for path in sorted(here.glob(f"_forward_{kind}.*")) if path.suffix == ".so"]
    return found[0] if found else None


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
