"""What may happen to a folder of snapshots while nobody uses it."""

import shutil
from pathlib import Path


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/segments/*.safetensors"))


def newest_manifests(folder: Path) -> list[Path]:
    """One of every partition; their names begin with the offset."""
    return [sorted(partition.glob("*.json"))[-1] for partition in sorted(folder.glob("*/*/manifests/*"))]


def flip(path: Path, position: int) -> None:
    """One bit of one byte; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_last_bytes_of_segments(folder: Path) -> None:
    """One block of every second segment is damaged."""
    for path in segments(folder)[::2]:
        flip(path, -1)


def flip_headers_of_segments(folder: Path) -> None:
    for path in segments(folder)[::2]:
        flip(path, 40)


def cut_segments(folder: Path) -> None:
    for path in segments(folder)[1::2]:
        cut(path)


def lose_segments(folder: Path) -> None:
    for path in segments(folder)[::3]:
        path.unlink()


def flip_manifests(folder: Path) -> None:
    """Of every partition the newest one."""
    for path in newest_manifests(folder):
        flip(path, len(path.read_bytes()) // 2)


def cut_manifests(folder: Path) -> None:
    for path in newest_manifests(folder):
        cut(path)


def lose_manifests(folder: Path) -> None:
    """A stale one is left."""
    for path in newest_manifests(folder):
        path.unlink()


def lose_all(folder: Path) -> None:
    shutil.rmtree(folder)
