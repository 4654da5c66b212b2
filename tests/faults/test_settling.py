"""Stuck is who stands still, not who is slow; and what is no failure of a worker."""

from pathlib import Path

import pytest
from harness.history import History, Past, read_history
from harness.processes import Workers
from harness.settling import Settling

from streamproc.config import Config

A, B = ("records", 0), ("records", 1)


def test_slow_is_not_stuck() -> None:
    settling = Settling(90)
    for turn in range(1_000):
        settling.look(80.0 * turn, {A: turn, B: 5}, {A: 1_000, B: 5})
        assert not settling.is_over
    settling.look(80_000, {A: 1_000, B: 5}, {A: 1_000, B: 5})
    assert settling.is_settled


@pytest.mark.parametrize("others", [0, 1])  # that move on
def test_who_stands_still_is_stuck_whatever_the_others_do(others: int) -> None:
    settling = Settling(90)
    for turn in range(10):
        settling.look(10.0 * turn, {A: 7, B: 5 + turn * others}, {A: 8, B: 500})
        assert not settling.is_over
    settling.look(91.0, {A: 7, B: 50}, {A: 8, B: 500})
    assert settling.stuck == ["records partition 0 has stood at 7 of 8 for 91 s"]
    assert not settling.is_settled


def test_nothing_committed_is_a_place_to_stand_still_at() -> None:
    settling = Settling(90)
    for now_s in (0.0, 91.0):
        settling.look(now_s, {}, {A: 8})
    assert settling.stuck


def test_who_is_told_to_stop_before_it_has_begun_did_not_crash(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    workers = Workers(Config(), lambda lane: "127.0.0.1:1", tmp_path, history)
    workers.start("a")
    workers.stop("a")
    history.close()
    (_, ended) = Past(read_history(history.path)).of("worker")
    assert ended["what"] == "end"
    assert workers.deaths == []
