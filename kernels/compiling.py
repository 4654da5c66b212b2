"""Compiles the kernels for chips that are not here, and says what the compiler made of them.

A kernel file lists what the product launches in `variants(chip)`. The numbers are read from the machine code: registers
and stack with cuobjdump, instructions from the disassembly. `python -m streamproc.kernels.compiling --json` prints
them for every chip; `--write` records them in compiled.json, which tests compare with. TRITON_INTERPRET must be unset.
"""

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from streamproc.kernels.configs import Chip, config_for

ARCHITECTURES = (80, 90, 100)
RECORDED = Path(__file__).with_name("compiled.json")

MATRIX = re.compile(r"(?:[HIQO]|UTC\w*)G?MMA")
COPIES = re.compile(r"LDGSTS|UTMALDG|UBLKCP")
LOCAL = re.compile(r"LDL|STL")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)
LISTING = re.compile(r"^def variants\(chip", re.MULTILINE)
LAYOUT = re.compile(r"#(?:ttg\.nvidia_mma|ttng\.tensor_memory_encoding)<(.+?)>$", re.MULTILINE)


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel that the product launches.

    name: unique in its file
    signature: of every argument that is no constant: "*bf16", "*i64", "i32", "fp32" ...; pointers are taken as aligned
        to 16 bytes, and ":16" after the type of an integer says that it is a multiple of 16, as a launch would see
    constexprs: constants by name; also arguments that are None
    needs: "matrix" instructions and asynchronous "copies" that the machine code must have
    blocks_per_multiprocessor: how many blocks of threads must fit together
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    needs: tuple[str, ...] = ()
    blocks_per_multiprocessor: int = 1


@dataclass(frozen=True)
class Compiled:
    """What a variant is on one chip; `matrix`, `copies` and `local` count instructions of the machine code by name."""

    name: str
    arch: int
    num_warps: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    matrix: dict[str, int]
    copies: dict[str, int]
    local: dict[str, int]
    layouts: list[str]    # of the matrix instructions' results, from the compiler's own listing
    sass_sha256: str
    needs: tuple[str, ...] = field(default=(), compare=False)
    blocks_per_multiprocessor: int = field(default=1, compare=False)


def source_of(variant: Variant) -> Any:
    """The kernel with its types, constants and alignments, as a launch would give them to the compiler."""
    from triton.compiler import ASTSource  # noqa: PLC0415  (the table of variants is listed without a compiler)

    names = variant.kernel.arg_names
    given = {**variant.signature, **dict.fromkeys(variant.constexprs, "constexpr")}
    if given.keys() != set(names) or len(given) != len(variant.signature) + len(variant.constexprs):
        raise ValueError(f"{variant.name}: arguments {sorted(given)}, the kernel's are {names}")
    aligned = [i for i, name in enumerate(names) if given[name].startswith("*") or given[name].endswith(":16")]
    return ASTSource(
        fn=variant.kernel,
        signature={name: given[name].removesuffix(":16") for name in names},
        constexprs=dict(variant.constexprs),
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )


def compile_for(variant: Variant, arch: int) -> Compiled:
    """Compiles down to machine code; arch: 80 (A100), 90 (H100, H200), 100 (B200)."""
    import triton  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    built = triton.compile(source_of(variant), target=GPUTarget("cuda", arch, 32), options=options)
    usage, sass = inspect(built.asm["cubin"])
    instructions = INSTRUCTION.findall(sass)
    text = "\n".join(name + rest.rstrip() for name, rest in instructions)
    return Compiled(
        name=variant.name,
        arch=arch,
        num_warps=built.metadata.num_warps,
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
        spill_bytes=usage["LOCAL"],
        shared_bytes=built.metadata.shared,
        matrix=counted(MATRIX, instructions),
        copies=counted(COPIES, instructions),
        local=counted(LOCAL, instructions),
        layouts=sorted(set(LAYOUT.findall(built.asm["ttgir"]))),
        sass_sha256=hashlib.sha256(text.encode()).hexdigest(),
        needs=variant.needs,
        blocks_per_multiprocessor=variant.blocks_per_multiprocessor,
    )


def counted(pattern: re.Pattern[str], instructions: list[tuple[str, str]]) -> dict[str, int]:
    return dict(sorted(Counter(name for name, _ in instructions if pattern.match(name)).items()))


def inspect(cubin: bytes) -> tuple[dict[str, int], str]:
    """Resources by their names in cuobjdump, and the disassembly."""
    import triton  # noqa: PLC0415

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}    # it starts nvdisasm
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tools / "cuobjdump", option, file.name], env=environment, check=True, text=True,
                           capture_output=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}, sass


def kernel_files() -> Iterator[str]:
    """Names of the modules beside this one that list variants."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if LISTING.search(Path(__file__).with_name(module.name + ".py").read_text()):
            yield module.name


def variants_of(module: str, chip: Chip) -> list[Variant]:
    return list(importlib.import_module(f"streamproc.kernels.{module}").variants(chip))


def compile_one(module: str, arch: int, index: int) -> Compiled:
    return compile_for(variants_of(module, config_for((arch // 10, arch % 10)))[index], arch)


def compile_all(architectures: tuple[int, ...] = ARCHITECTURES, modules: tuple[str, ...] = (), jobs: int = 2
                ) -> dict[str, dict[str, Any]]:
    """Every variant for every architecture, by "sm_90 module.name"."""
    tasks = [
        (module, arch, index, f"sm_{arch} {module}.{variant.name}")
        for module in modules or tuple(kernel_files())
        for arch in architectures
        for index, variant in enumerate(variants_of(module, config_for((arch // 10, arch % 10))))
    ]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        results = pool.map(compile_one, *zip(*(task[:3] for task in tasks), strict=True))
        return {task[3]: asdict(result) for task, result in zip(tasks, results, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels for every chip, without one")
    parser.add_argument("--json", action="store_true", help="print what was found")
    parser.add_argument("--write", action="store_true", help=f"record it in {RECORDED.name}")
    parser.add_argument("--arch", type=int, action="append", help="80, 90, 100; all if not given")
    parser.add_argument("--module", action="append", help="a file of kernels, as matmul; all if not given")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: there is nothing to compile")
    import triton  # noqa: PLC0415

    found = compile_all(tuple(options.arch or ARCHITECTURES), tuple(options.module or ()))
    if options.write:
        recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() and (options.arch or options.module) else {}
        kernels = {**recorded.get("kernels", {}), **{name: to_record(one) for name, one in found.items()}}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels))
        RECORDED.write_text(f'{{"triton": {json.dumps(triton.__version__)}, "kernels": {{\n{lines}\n}}}}\n')
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": found}))
    elif not options.write:
        for name, one in found.items():
            print(name, *(f"{key}={one[key]}" for key in ("registers", "spill_bytes", "stack_bytes", "shared_bytes",
                                                         "matrix", "copies", "layouts")))


def to_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared with compiled.json: the rest is bounded or follows from it."""
    return {key: found[key] for key in ("registers", "shared_bytes", "matrix", "copies", "sass_sha256")}


if __name__ == "__main__":
    main()
