"""The alarm: the built-in model is as right as it was when it was published, through the whole processor.

The model's answers are a function of its cells: a lost, repeated or misplaced one, a wrong mask, a record rendered
otherwise, a hop at another place, and answers turn wrong that were right. Its own tolerance is one point.
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from streamproc.config import Config
from streamproc.engine.build import Engine, build_engine
from streamproc.engine.cpu.program import Rotary
from streamproc.engine.kv_cache import KVCache
from streamproc.evaluate import Report, Settings, evaluate
from streamproc.market.rendering import market_model

POINT = 0.01
FIGURES = json.loads((market_model() / "figures.json").read_text())
QUALITY: dict[str, Any] = FIGURES["quality"]


def run(name: str, asks: int | None = None) -> Report:
    figures = QUALITY[name]
    settings = Settings(figures["feed"], figures["session_by"], asks or figures["asked"], seed=figures["seed"])
    return evaluate(build_engine, Config(), settings)


@pytest.mark.parametrize("name", QUALITY)
def test_the_built_in_model_is_as_right_as_when_it_was_published(name: str) -> None:
    found, published = run(name).doc(), QUALITY[name]
    assert found["errors"] == 0, found["first_error"]
    assert found["asked"] == published["asked"]
    assert found["overall"] >= published["overall"] - POINT
    for kind, share in published["by_question"].items():
        assert found["by_question"][kind] >= share - 3 * POINT, kind
    for bound, share in published["by_context"].items():
        assert found["by_context"][bound] >= share - 2 * POINT, bound
    assert found["after_hop"]["asked"] > 20


def damaged_copies(kv: KVCache, pairs: Sequence[tuple[int, int]]) -> None:
    """Forgets to copy the partly filled block of a fork."""


def positions_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions begin anew every 64 tokens."""
    piece = Rotary._piece

    def anew(self: Rotary, kind: str | None, places: range) -> torch.Tensor:
        return piece(self, kind, places)[:, torch.arange(len(places)) % 64]

    monkeypatch.setattr(Rotary, "_piece", anew)


@pytest.mark.parametrize("mistake", ["no copy for a fork", "positions anew"])
def test_the_alarm_rings(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "no copy for a fork":
        monkeypatch.setattr(KVCache, "copy", damaged_copies)
    else:
        positions_anew(monkeypatch)
    assert run("synthetic", asks=160).overall < QUALITY["synthetic"]["overall"] - 3 * POINT


def test_the_engine_of_the_default_model_needs_no_settings() -> None:
    engine: Engine = build_engine(Config())
    try:
        assert engine.renderer.looks_back
        assert engine.renderer.stop == ("\n",)
        assert engine.runner.exact
    finally:
        engine.close()
