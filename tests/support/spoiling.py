"""Spoil a copy of a model, and see with which line it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamproc.config import Engine as Settings
from streamproc.engine.model import load_model
from streamproc.errors import StreamprocError, Usage


def refusal(settings: Settings, kind: type[StreamprocError] = Usage) -> str:
    with pytest.raises(kind) as caught:
        load_model(settings)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("engine.")
    return text


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def recast(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights.update({name: weight.to(dtype) for name, weight in weights.items()})
