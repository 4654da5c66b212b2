"""The compiled forward.cpp: built when the package is installed, once for each kind of processor.

Where no compiler was at hand there is none, and torch computes instead.
"""

import ctypes
import hashlib
from functools import cache
from pathlib import Path

import torch

KINDS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}     # by torch's name of what the processor can
OTHERS = ("generic",)


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
    here = Path(__file__).parent
    for kind in KINDS.get(torch.backends.cpu.get_cpu_capability(), OTHERS):
        for path in sorted(here.glob(f"_forward_{kind}.*")):
            if path.suffix in {".so", ".pyd", ".dylib"}:
                return path
    return None


@cache
def library_fingerprint() -> str:
    """Of the machine code: other code may give other bits."""
    path = library_path()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else ""
