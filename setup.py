"""The CPU engine's machine code, once for each kind of processor; where there is no compiler it is left out."""

import platform
from pathlib import Path

from setuptools import Extension, setup

KINDS = {  # by machine: name of a kind, and what its processors can
    "x86_64": {"avx512bf16": ["-march=x86-64-v4", "-mavx512bf16"], "avx512": ["-march=x86-64-v4"],
               "avx2": ["-march=x86-64-v3"]},
}
FOLDER = Path("streamproc/engine/cpu")
HEADERS = sorted(map(str, FOLDER.glob("*.h")))
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-pthread", "-Wno-psabi",
         "-Wno-maybe-uninitialized"]      # of GCC's own headers

setup(ext_modules=[
    Extension(f"streamproc.engine.cpu._forward_{kind}", [str(FOLDER / "forward.cpp")], depends=HEADERS,
              language="c++", extra_compile_args=FLAGS + flags, extra_link_args=["-pthread"], optional=True)
    for kind, flags in KINDS.get(platform.machine(), {"generic": []}).items()
])
