"""What `streamproc doctor` looks at on this machine. A check looks and tells, it changes nothing and never raises."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from streamproc.config import Config, known_settings
from streamproc.market.rendering import market_model
from streamproc.memory import CPU_POOL_BYTES, MIB, free_memory_bytes, mib

OK, WARN, FAIL = "OK", "WARN", "FAIL"
BUILT_IN_MODEL, NOISE_MODEL = "market-tiny", "random-tiny"
GPU_QUERY = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
WORKER_MEND = "pip install 'streamproc[worker]' to run a worker here"
MIN_DISK_BYTES, LOW_DISK_BYTES = 100 * MIB, 2**30


class Check(NamedTuple):
    """One finding: OK, WARN or FAIL, what was seen, and what would mend it."""

    name: str
    state: str
    detail: str
    mend: str = ""


class Gpu(NamedTuple):
    """A GPU and its free memory."""

    name: str
    free_bytes: int


def check_settings(config: Config) -> Check:
    """Which settings are not the default, and where they came from."""
    changed = [key for key in sorted(config.sources) if key in known_settings() or key.startswith("kafka.")]
    told = ", ".join(f"{key} ({config.sources[key]})" for key in changed)
    return Check("settings", OK, f"{len(changed)} not default: {told}" if changed else "all default")


def check_versions() -> list[Check]:
    """Versions of what must be there and of what a worker needs, without importing any of it."""
    needed = [("streamproc", ""), ("confluent-kafka", "")]
    worker = [(name, WORKER_MEND) for name in ("torch", "transformers")]
    return [Check("python", OK, platform.python_version()), *(check_version(*item) for item in (*needed, *worker))]


def check_version(distribution: str, mend: str) -> Check:
    try:
        return Check(distribution, OK, version(distribution))
    except PackageNotFoundError:
        return Check(distribution, WARN, "not installed", mend or f"pip install {distribution}")


def check_model(model: str, environ: Mapping[str, str]) -> Check:
    """Whether the model can be loaded without asking anybody."""
    folder = Path(model).expanduser()
    if model in (BUILT_IN_MODEL, NOISE_MODEL):
        return check_built_in(model, market_model())
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return Check("model", OK, f"folder {folder}")
        return Check(
            "model", FAIL, f"{folder} has no config.json", "set engine.model to a folder saved by transformers"
        )
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        return Check("model", FAIL, f"there is no folder {folder}", "set engine.model to a folder or a hub name")
    if (hub_cache(environ) / f"models--{model.replace('/', '--')}" / "snapshots").is_dir():
        return Check("model", OK, f"{model} (downloaded)")
    return Check("model", WARN, f"{model} is not on this machine", "the first start of a worker downloads it")


def check_built_in(model: str, folder: Path) -> Check:
    """`folder` holds the one that ships with the package; the other is made where it is needed."""
    if model == NOISE_MODEL:
        return Check("model", OK, f"{model} (built in, its words are noise)")
    if (folder / "config.json").is_file():
        return Check("model", OK, f"{model} (built in)")
    mend = "install streamproc again, or set engine.model to a folder or a hub name"
    return Check("model", FAIL, f"{model} is not in {folder}", mend)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the hub's client keeps downloaded models."""
    if given := environ.get("HF_HUB_CACHE"):
        return Path(given)
    return Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"


def check_device(device: str, gpu: Gpu | None) -> Check:
    if gpu and device != "cpu":
        return Check("device", OK, f"{gpu.name}, {mib(gpu.free_bytes)} free")
    if device.startswith("cuda"):
        return Check("device", FAIL, "nvidia-smi shows no GPU", "set engine.device=cpu, or mend the driver")
    return Check("device", OK, f"CPU, {os.cpu_count()} cores")


def check_code(uses_gpu: bool) -> Check:
    """What would compute: our own machine code is for the CPU and the families of models that it knows."""
    if uses_gpu:
        return check_gpu_code()
    try:
        from streamproc.engine.cpu.library import damaged_paths, library_kind
    except ImportError as problem:
        return Check("code", WARN, f"not known, {problem.name} is not installed", WORKER_MEND)
    kind, damaged = library_kind(), [path.name for path in damaged_paths()]
    detail = f"own code, {kind}; torch for models that it does not know" if kind else "torch"
    if damaged:
        return Check("code", WARN, f"{detail}; {', '.join(damaged)} cannot be loaded", "install streamproc again")
    if not kind:
        return Check("code", WARN, f"{detail}, our own code is not built for this processor",
                     "install streamproc where there is a C++ compiler: it is several times faster")  # fmt: skip
    return Check("code", OK, detail)


def check_gpu_code() -> Check:
    """Whether our kernels can be compiled here: Triton, and the C compiler that it calls."""
    if find_spec("triton") is None:
        return Check("code", WARN, "torch, on the GPU: triton is not installed", "pip install 'streamproc[gpu]'")
    compilers = [os.environ.get("CC", ""), "gcc", "clang"]
    if not any(shutil.which(name) for name in compilers if name):
        return Check("code", WARN, "torch, on the GPU: Triton finds no C compiler", "install gcc, or set CC")
    return Check("code", OK, "Triton kernels, on the GPU; torch for models that they do not know")


def check_memory(kv_bytes: int, free_bytes: int | None, where: str) -> Check:
    """The KV pool beside the free memory of the device it will lie on."""
    if free_bytes is None:
        return Check("memory", WARN, "free memory is not known", f"see that {mib(kv_bytes)} are free for the KV pool")
    detail = f"KV pool {mib(kv_bytes)}, {where} has {mib(free_bytes)} free"
    if kv_bytes > free_bytes:
        return Check("memory", FAIL, detail, f"set engine.kv_bytes={free_bytes // 2 // MIB}MiB or less")
    if kv_bytes > free_bytes // 2:
        return Check("memory", WARN, detail, "the model's weights need room too: a smaller engine.kv_bytes is safer")
    return Check("memory", OK, detail)


def check_state_dir(folder: Path) -> Check:
    """The state folder, or where it would be made: may we write, is there room."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check("state", FAIL, f"cannot write {folder}", "set STREAMPROC_STATE_DIR to a folder of yours")
    free_bytes = shutil.disk_usage(there).free
    detail = f"{folder}, {mib(free_bytes)} free"
    if free_bytes < LOW_DISK_BYTES:
        state = FAIL if free_bytes < MIN_DISK_BYTES else WARN
        return Check("state", state, detail, "free some disk, or set STREAMPROC_STATE_DIR to another one")
    return Check("state", OK, detail)


def find_gpu() -> Gpu | None:
    """The first GPU that nvidia-smi shows."""
    try:
        told = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu(told)


def parse_gpu(told: str) -> Gpu | None:
    name, comma, free_mib = told.partition("\n")[0].rpartition(",")
    return Gpu(name.strip(), int(free_mib) * MIB) if comma and free_mib.strip().isdecimal() else None


def check_machine(config: Config, state_dir: Path, environ: Mapping[str, str]) -> Iterable[Check]:
    """Everything but Kafka."""
    yield from check_versions()
    yield check_model(config.engine.model, environ)
    gpu = find_gpu()
    yield check_device(config.engine.device, gpu)
    uses_gpu = gpu is not None and config.engine.device != "cpu"
    yield check_code(uses_gpu)
    if gpu and uses_gpu:
        yield check_memory(config.engine.kv_bytes or gpu.free_bytes // 2, gpu.free_bytes, "the GPU")
    else:
        yield check_memory(config.engine.kv_bytes or CPU_POOL_BYTES, free_memory_bytes(), "this machine")
    yield check_state_dir(state_dir)
