"""What the suite ran on."""

import datetime
import os
import platform
import subprocess
from typing import Any

import torch
import transformers
import triton

from gpu import checkout


def card(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and date, for the JSON line."""
    found: dict[str, Any] = {
        "torch": torch.__version__, "triton": triton.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(), "cpu_cores": os.cpu_count(), "commit": checkout.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    if device.type != "cuda":
        return {"device": "cpu", **found}
    facts = torch.cuda.get_device_properties(device)
    return {"device": facts.name, "memory_gib": round(facts.total_memory / 2**30, 1),
            "multiprocessors": facts.multi_processor_count, "capability": f"{facts.major}.{facts.minor}",
            "driver": driver(), "cuda": torch.version.cuda, **found}  # fmt: skip


def driver() -> str:
    """Of the GPU; empty where nvidia-smi is missing."""
    try:
        found = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], check=True,
                               capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.split("\n", 1)[0].strip()
