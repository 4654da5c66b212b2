"""What the soak says of a worker's memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.history import Event, History, Past, read_history
from harness.soak import watch_memory

FLAT = [100] * 400
GROWING = [100 + number for number in range(400)]
LEARNING = [number for number in range(100)] + [100] * 300  # what it needs once
SHORT = GROWING[:300]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    found = History(tmp_path / "history.jsonl")
    yield found
    found.close()


def looked_at(folder: Path, history: History, sizes: list[int]) -> tuple[list[Event], list[Event]]:
    """A worker that said twice a second how many MiB it has -> what is noted, what is found wrong."""
    lines = [json.dumps({"rss_bytes": size * 2**20}) for size in sizes]
    (folder / "worker-a-1.jsonl").write_text("\n".join([*lines, '{"rss_by']))  # the last is being written
    watch_memory(SimpleNamespace(folder=folder, history=history))  # type: ignore[arg-type]
    history.close()
    past = Past(read_history(history.path))
    return past.of("memory"), past.of("settled", ok=False)


@pytest.mark.parametrize("sizes", [FLAT, LEARNING])
def test_memory_that_stays_is_looked_at_and_no_violation(history: History, tmp_path: Path, sizes: list[int]) -> None:
    noted, wrong = looked_at(tmp_path, history, sizes)
    assert [event["worker"] for event in noted] == ["worker-a-1"]
    assert not wrong


def test_memory_that_grows_is_a_violation(history: History, tmp_path: Path) -> None:
    _, wrong = looked_at(tmp_path, history, GROWING)
    assert "worker-a-1 grows" in wrong[0]["why"]


def test_a_worker_that_has_not_lived_long_is_not_looked_at(history: History, tmp_path: Path) -> None:
    assert looked_at(tmp_path, history, SHORT) == ([], [])
