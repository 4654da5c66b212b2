"""Memory that programs here can still get: what the machine has free, and what the control groups around us allow."""

from collections.abc import Iterator
from pathlib import Path

MIB = 2**20
CPU_POOL_BYTES = 256 * MIB     # of K and V, where no size is given
ROOT = Path("/")
CONTROLLERS = {     # by the name in /proc/self/cgroup: where it is mounted, limit, usage, and what of it can be dropped
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory_bytes(root: Path = ROOT) -> int | None:
    """None where the system does not tell."""
    return min([*machine_free(root), *groups_free(root)], default=None)


def machine_free(root: Path) -> Iterator[int]:
    for line in lines_of(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def groups_free(root: Path) -> Iterator[int]:
    """Of every control group around us that limits memory; in a container the outer ones cannot be seen."""
    for line in lines_of(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in CONTROLLERS:
                mount, *files = CONTROLLERS[name]
                inner = Path(path.lstrip("/"))
                for group in (inner, *inner.parents):
                    yield from group_free(root / mount / group, *files)


def group_free(folder: Path, limit: str, usage: str, droppable: str) -> Iterator[int]:
    limits, used = lines_of(folder / limit), lines_of(folder / usage)
    if limits and limits[0].isdecimal() and used:
        stat = dict(line.split() for line in lines_of(folder / "memory.stat"))
        yield max(0, int(limits[0]) - int(used[0]) + int(stat.get(droppable, 0)))


def lines_of(path: Path) -> list[str]:
    """Empty where there is no such file, or not for us."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def mib(num_bytes: int) -> str:
    return f"{num_bytes // MIB:,} MiB"
