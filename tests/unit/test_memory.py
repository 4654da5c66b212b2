"""Free memory as the files of the system tell it; the folders here stand for its root."""

from pathlib import Path

import pytest

from streamproc.memory import free_memory_bytes, mib

KIB = 1024


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, **{"proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n"})


def test_it_is_what_the_machine_has(root: Path, tmp_path: Path) -> None:
    assert free_memory_bytes(root) == 3000 * KIB
    assert free_memory_bytes(tmp_path / "none") is None


def test_a_group_around_us_limits_it_less_what_it_can_drop(root: Path) -> None:
    write(root, **{
        "proc/self/cgroup": "0::/slice/pod\n",
        "sys/fs/cgroup/slice/memory.max": str(900 * KIB),
        "sys/fs/cgroup/slice/memory.current": str(600 * KIB),
        "sys/fs/cgroup/slice/memory.stat": f"anon 7\ninactive_file {100 * KIB}\n",
        "sys/fs/cgroup/slice/pod/memory.max": "max\n",
        "sys/fs/cgroup/slice/pod/memory.current": "5",
    })
    assert free_memory_bytes(root) == 400 * KIB


def test_in_a_container_the_limit_stands_at_the_top(root: Path) -> None:
    """Version 1 of the groups: the path is the host's and is not there."""
    write(root, **{
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(500 * KIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(700 * KIB),
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {250 * KIB}\n",
    })
    assert free_memory_bytes(root) == 50 * KIB


def test_no_limit_leaves_what_the_machine_has(root: Path) -> None:
    write(root, **{
        "proc/self/cgroup": "4:memory:/\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    })
    assert free_memory_bytes(root) == 3000 * KIB


def test_it_is_shown_in_mib() -> None:
    assert mib(2**31) == "2,048 MiB"
