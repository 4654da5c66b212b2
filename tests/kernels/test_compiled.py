"""Kernels compiled for chips that are not here: they fit, they spill nothing, and they are what they were."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamproc.kernels import compiling

KIB = 1024
SHARED = {80: (163 * KIB, 164 * KIB), 90: (227 * KIB, 228 * KIB), 100: (227 * KIB, 228 * KIB)}     # a block's, a chip's
RESERVED = KIB              # of shared memory, by every block
REGISTERS = 65536           # of a multiprocessor
INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
pytestmark = pytest.mark.timeout(1200)      # minutes on a slow machine, the first time
REORDERED = "sm_100 attention"      # their instructions come in another order from one compilation to the next
AGAIN = "python -m streamproc.kernels.compiling --write"


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-P", "-m", "streamproc.kernels.compiling", "--json"], env=environment,
                          check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_is_listed(compiled: dict[str, Any]) -> None:
    listed = {name.split()[1].partition(".")[0] for name in compiled["kernels"]}
    assert listed == set(compiling.kernel_files())
    files = [path for path in Path(compiling.__file__).parent.glob("*.py") if "tl.program_id" in path.read_text()]
    assert {path.stem for path in files} == listed, "a file of kernels has no variants(chip)"


def test_nothing_is_spilled(compiled: dict[str, Any]) -> None:
    for name, one in compiled["kernels"].items():
        assert not one["local"], f"{name}: {one['local']} with {one['registers']} registers"
        assert one["stack_bytes"] == one["spill_bytes"] == 0, name


def test_as_many_blocks_fit_on_a_multiprocessor_as_planned(compiled: dict[str, Any]) -> None:
    for name, one in compiled["kernels"].items():
        blocks, (of_a_block, of_all) = one["blocks_per_multiprocessor"], SHARED[one["arch"]]
        assert one["shared_bytes"] <= of_a_block, name
        assert blocks * (one["shared_bytes"] + RESERVED) <= of_all, name
        registers = -(-one["registers"] // 8) * 8 * 32 * one["num_warps"]
        assert blocks * registers <= REGISTERS, f"{name}: {one['registers']} registers, {one['num_warps']} warps"


def test_the_oldest_table_fits_on_the_smaller_chips_that_use_it(compiled: dict[str, Any]) -> None:
    """Of compute capability 8.6, 8.9 and 12."""
    of_the_oldest = {name: one for name, one in compiled["kernels"].items() if name.startswith("sm_80 ")}
    assert {name for name, one in of_the_oldest.items() if one["shared_bytes"] > 99 * KIB} == set()


def test_products_use_the_chips_matrix_instruction_and_copy_asynchronously(compiled: dict[str, Any]) -> None:
    for name, one in compiled["kernels"].items():
        instructions = {instruction.partition(".")[0] for instruction in one["matrix"]}
        assert instructions == ({INSTRUCTION[one["arch"]]} if "matrix" in one["needs"] else set()), name
        assert one["copies"] or "copies" not in one["needs"], name


def test_a_product_has_one_instruction_in_all_its_tiles(compiled: dict[str, Any]) -> None:
    """The depth of an instruction decides how many numbers are added at once."""
    for arch in compiling.ARCHITECTURES:
        found = [one for name, one in compiled["kernels"].items() if name.startswith(f"sm_{arch} matmul.")]
        names = {name for one in found for name in one["matrix"]}
        assert {name.rpartition("x")[2] for name in names} in ({"HMMA.16816.F32.BF16"}, {"16.F32.BF16"}, {"UTCHMMA"})


def test_a_rows_reductions_have_one_order_whichever_way_it_is_attended(compiled: dict[str, Any]) -> None:
    """Warps that share out the keys, and the shape of an instruction there: the same for whole and for split items."""
    kernels = compiled["kernels"]
    wholes = [name for name in kernels if ".whole_" in name and " attention." in name]
    assert len(wholes) > 20
    for name in wholes:
        both = kernels[name], kernels[name.replace(".whole_", ".split_")]
        assert columns_of(both[0]) == columns_of(both[1]), name


def columns_of(one: dict[str, Any]) -> set[tuple[str, ...]]:
    """Of its layouts: what does not only say how many rows a program has."""
    found = set()
    for layout in one["layouts"]:
        warps = re.search(r"warpsPerCTA = \[(\d+), (\d+)\], instrShape = \[([\d, ]+)\]", layout)
        found.add((warps[2], warps[3]) if warps else (layout,))
    return found


def test_the_compiler_makes_what_it_made(compiled: dict[str, Any]) -> None:
    recorded = json.loads(compiling.RECORDED.read_text())
    if recorded["triton"] != compiled["triton"]:
        pytest.skip(f"recorded with triton {recorded['triton']}, this is {compiled['triton']}")
    found = {name: compiling.to_record(one) for name, one in compiled["kernels"].items()}
    assert found.keys() == recorded["kernels"].keys(), f"other kernels; if they are meant: {AGAIN}"
    before = recorded["kernels"]
    for name, one in found.items():
        if name.startswith(REORDERED):
            one["sass_sha256"] = before[name]["sass_sha256"] = "any"
    changed = {name: (before[name], one) for name, one in found.items() if before[name] != one}
    assert not changed, f"other code (recorded, found); if it is meant: {AGAIN}"


def test_what_was_compiled_is_found_in_whatever_order_kernels_are_used() -> None:
    """Triton's cache on disk, by a later process."""
    code = ("import sys; from streamproc.kernels import attention, matmul, ops, rms_norm; "
            "kernels = [attention.attend_items, matmul.product, rms_norm.normalize][::int(sys.argv[1])]; "
            "print(sorted(kernel.cache_key for kernel in kernels))")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    keys = {subprocess.run([sys.executable, "-P", "-c", code, order], env=environment, check=True, text=True,
                           stdout=subprocess.PIPE).stdout for order in ("1", "-1")}
    assert len(keys) == 1
