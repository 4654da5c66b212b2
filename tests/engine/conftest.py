"""Tiny random models of several architectures, and the built-in one in a state folder of the tests' own."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, tiny

from streamproc.config import Config, Engine
from streamproc.engine.build import build_engine
from streamproc.engine.choice import cpu_forward, torch_forward
from streamproc.engine.cpu import library as libraries
from streamproc.engine.forward import Forward
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.program import compile_gpu_program
from streamproc.engine.loaded import LoadedModel, describe
from streamproc.engine.model import load_model
from streamproc.kernels import reference


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The defaults but for the model, with state in a folder of this run."""
    patch = pytest.MonkeyPatch()
    patch.setenv("STREAMPROC_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    yield Config(engine=Engine(model="random-tiny", kv_bytes=8 * 2**20))
    patch.undo()


@pytest.fixture(scope="session")
def engine(config: Config) -> Any:
    """The built-in model, running."""
    engine = build_engine(config)
    yield engine
    engine.close()


@pytest.fixture
def folder(engine: Any, tmp_path: Path) -> Path:
    """A copy of the built-in model, to be spoilt."""
    return Path(shutil.copytree(engine.loaded.folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def random_tiny(config: Config) -> Any:
    """The built-in model as it is loaded: the engine frees its weights."""
    return load_model(config.engine).model


@pytest.fixture(scope="session")
def load(random_tiny: Any) -> Any:
    """(name, dtype) -> LoadedModel, made once."""
    made: dict[tuple[str, torch.dtype], LoadedModel] = {}

    def load(name: str, dtype: torch.dtype) -> LoadedModel:
        if (name, dtype) not in made:
            model = tiny(name, dtype) if name in CONFIGS else copy.deepcopy(random_tiny).to(dtype)
            made[name, dtype] = describe(model, Path(), name)
        return made[name, dtype]

    return load


@pytest.fixture(scope="session")
def forward(load: Any) -> Any:
    """("own", "torch" or "kernels", name, dtype) -> what computes it, made once. Kernels are their references here."""
    made: dict[tuple[str, str, torch.dtype], Forward] = {}

    def forward(path: str, name: str, dtype: torch.dtype = torch.float32) -> Forward:
        if (path, name, dtype) not in made:
            with torch.inference_mode():
                loaded = load(name, dtype)
                if path == "kernels":
                    found = GpuForward(loaded, compile_gpu_program(loaded), reference)
                else:
                    found = cpu_forward(loaded, 16, 1) if path == "own" else torch_forward(loaded, 16)[0]
            assert found, f"{path} does not compute {name}: was the package installed without a compiler?"
            made[path, name, dtype] = found
        return made[path, name, dtype]

    return forward


@pytest.fixture(scope="session")
def plain(random_tiny: Any) -> Any:
    """name -> the same model with transformers' own attention, float32."""

    def plain(name: str) -> Any:
        if name in CONFIGS:
            return tiny(name, attention="eager" if name == "gemma2" else "sdpa")     # it has no other
        model = copy.deepcopy(random_tiny)
        model.set_attn_implementation("sdpa")
        return model

    return plain


@pytest.fixture
def other_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[set[str]], None]]:
    """Have the library looked for on a processor with these flags."""

    def other(flags: set[str]) -> None:
        monkeypatch.setattr(libraries, "processor_flags", lambda: flags)
        for cached in (libraries.best, libraries.library_fingerprint):
            cached.cache_clear()

    yield other
    monkeypatch.undo()
    for cached in (libraries.best, libraries.library_fingerprint):
        cached.cache_clear()
