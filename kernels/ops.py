"""All kernels in one place, under the names and with the signatures of their references."""

import hashlib
from pathlib import Path

import torch
import triton

from streamproc.kernels.argmax import greedy
from streamproc.kernels.attention import attend
from streamproc.kernels.attention_configs import Attention, attention_facts, attention_of
from streamproc.kernels.blocks import copy_blocks, gather_blocks, scatter_blocks
from streamproc.kernels.configs import config_of
from streamproc.kernels.dots import dot
from streamproc.kernels.gated import gated
from streamproc.kernels.interpreting import INTERPRETING
from streamproc.kernels.matmul import matmul
from streamproc.kernels.rms_norm import add_rms_norm, rms_norm
from streamproc.kernels.rotary import rotary_write
from streamproc.kernels.rounding import e4m3, int8, rounded
from streamproc.kernels.work import make_scratch

NAME = "Triton's interpreter" if INTERPRETING else "Triton"

__all__ = [
    "NAME", "add_rms_norm", "attend", "attention_sizes", "copy_blocks", "digest", "gated", "gather_blocks", "greedy",
    "make_scratch", "matmul", "rms_norm", "rotary_write", "scatter_blocks",
]  # fmt: skip

# Triton finds what it has compiled by a hash of the kernel and all that it calls. Of what several kernels call it is
# another one, where it was first come upon inside a kernel: without this a process that computes in another order than
# the one before it compiles most kernels anew.
HASHES = () if INTERPRETING else tuple(shared.cache_key for shared in (dot, rounded, e4m3, int8))


def attention_sizes(device: torch.device, head_dim: int, is_involved: bool = False) -> Attention:
    return attention_of(config_of(device).name, head_dim, is_involved)


def digest(device: torch.device) -> str:
    """Of all that bits depend on besides the model: tables, compiler, and the kernels themselves."""
    chip, source = config_of(device), hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    return f"{chip.digest} {attention_facts(chip.name)} triton {triton.__version__} {source.hexdigest()}"
