"""What the fingerprint knows of the machine."""

from pathlib import Path

import pytest
import torch

from streamproc.engine.chip import CPU_INFO, cpu_digest, kernel_facts

SKYLAKE = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R)
cpu MHz\t\t: 2000.123
flags\t\t: fpu avx2 avx512f avx512_vnni

processor\t: 1
vendor_id\t: GenuineIntel
"""


def digest(folder: Path, text: str) -> str:
    file = folder / "cpuinfo"
    file.write_text(text)
    return cpu_digest(file)


@pytest.mark.parametrize(
    ("old", "new"),
    [("GenuineIntel", "AuthenticAMD"), (": 85", ": 143"), ("avx512_vnni", "avx512_vnni avx512_bf16 amx_tile"),
     ("Xeon(R)", "Xeon(R) Gold")],
)
def test_chips_of_one_capability_are_told_apart(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path, SKYLAKE.replace(old, new)) != digest(tmp_path, SKYLAKE)


def test_what_changes_from_moment_to_moment_does_not_count(tmp_path: Path) -> None:
    same = SKYLAKE.replace("2000.123", "3100.5").replace("fpu avx2", "avx2 fpu")
    assert digest(tmp_path, same) == digest(tmp_path, SKYLAKE)


def test_without_proc_the_platform_is_asked(tmp_path: Path) -> None:
    assert len(cpu_digest(tmp_path / "none")) == 16
    assert cpu_digest(CPU_INFO) == cpu_digest(CPU_INFO)


def test_threads_and_precision_are_facts() -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        first = kernel_facts("cpu")
        torch.set_num_threads(2)
        second = kernel_facts("cpu")
        torch.set_float32_matmul_precision("medium")
        assert len({first, second, kernel_facts("cpu")}) == 3
        assert kernel_facts("cuda") != kernel_facts("cpu")
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
