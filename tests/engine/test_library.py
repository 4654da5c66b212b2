"""The compiled library: which one is taken, what of it is told, and what is left where it is damaged."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from streamproc.cli.checks import OK, WARN, check_code
from streamproc.engine.choice import choose_forward
from streamproc.engine.cpu import library as libraries
from streamproc.engine.cpu.forward import CpuForward
from streamproc.engine.cpu.library import KINDS, processor_flags
from streamproc.engine.loaded import LoadedModel

Load = Callable[[str, torch.dtype], LoadedModel]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_kind: Callable[[set[str]], None]) -> list[Path]:
    """Copies of what was built for this processor, to be damaged; the fastest first."""
    paths = [Path(shutil.copy(path, tmp_path)) for path in libraries.library_paths()]
    assert paths
    other_kind(processor_flags())
    monkeypatch.setattr(libraries, "library_paths", lambda: paths)
    return paths


@pytest.mark.parametrize("content", [b"", b"not a library", None])
@pytest.mark.parametrize("num_damaged", [1, len(KINDS)])
def test_damaged_libraries_are_left_to_the_next_kind_and_then_to_torch(num_damaged: int, content: bytes | None,
                                                                       built: list[Path]) -> None:
    for path in built[:num_damaged]:
        path.write_bytes(path.read_bytes()[:-20_000] if content is None else content)
    whole = built[num_damaged:]
    assert libraries.library_path() == (whole[0] if whole else None)
    assert (libraries.library() is not None) == bool(whole)
    assert bool(libraries.library_kind()) == bool(libraries.library_fingerprint()) == bool(whole)


def test_what_is_told_of_the_library_is_of_the_one_that_runs(built: list[Path], load: Load) -> None:
    if len(built) < 2:
        pytest.skip("one kind runs here")
    built[0].write_bytes(b"")
    forward, is_exact = choose_forward(load("qwen3", torch.float32), 16, 1)
    assert isinstance(forward, CpuForward)
    assert is_exact
    assert forward.name == f"own code, {built[1].name.split('.')[0].removeprefix('_forward_')}"
    assert forward.facts[0] == hashlib.sha256(built[1].read_bytes()).hexdigest()[:16]


def test_doctor_says_what_would_compute(built: list[Path]) -> None:
    names = [path.name.split(".")[0].removeprefix("_forward_") for path in built]
    assert check_code(uses_gpu=False) == (
        "code", OK, f"own code, {names[0]}; torch for models that it does not know", "")  # fmt: skip


def test_doctor_names_libraries_that_are_damaged(built: list[Path]) -> None:
    for path in built:
        path.write_bytes(b"")
    found = check_code(uses_gpu=False)
    assert (found.state, found.mend) == (WARN, "install streamproc again")
    assert found.detail == f"torch; {', '.join(path.name for path in built)} cannot be loaded"


def test_doctor_says_where_nothing_was_built(monkeypatch: pytest.MonkeyPatch,
                                             other_kind: Callable[[set[str]], None]) -> None:
    other_kind(processor_flags())
    monkeypatch.setattr(libraries, "library_paths", list)
    found = check_code(uses_gpu=False)
    assert (found.state, found.detail) == (WARN, "torch, our own code is not built for this processor")


def test_a_library_of_another_layout_is_not_used(monkeypatch: pytest.MonkeyPatch,
                                                 other_kind: Callable[[set[str]], None]) -> None:
    other_kind(processor_flags())
    monkeypatch.setattr(libraries, "LAYOUT", libraries.LAYOUT + 1)
    assert libraries.library() is None
