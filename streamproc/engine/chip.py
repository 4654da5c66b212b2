"""What torch's kernels are chosen by, and so what the last bits of their results depend on."""

import hashlib
import platform
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
# x86, then ARM: torch says AVX512 of many chips, but oneDNN and MKL look closer (AMX, BF16, who made it)
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "flags",
              "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")  # fmt: skip


def kernel_facts(device: str) -> tuple[str, ...]:
    """Of this machine and process. On a CPU sums are shared out to the calling thread's number of threads."""
    precision = torch.get_float32_matmul_precision()
    if device == "cuda":
        matmul = torch.backends.cuda.matmul
        return (precision, str(matmul.allow_fp16_reduced_precision_reduction),
                str(matmul.allow_bf16_reduced_precision_reduction))
    return precision, cpu_digest(CPU_INFO), str(torch.get_num_threads())


def cpu_digest(info: Path) -> str:
    """Of vendor, model and instructions of the first processor; 16 hex digits."""
    try:
        lines = info.read_text().split("\n\n", 1)[0].splitlines()
    except OSError:     # not Linux
        facts = [platform.machine(), platform.processor()]
    else:
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        facts = [platform.machine(), *(" ".join(sorted(found.get(name, "").split())) for name in CPU_FIELDS)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
