"""The checks of the Jepsen mix find every anomaly in histories that were spoilt by hand."""

import copy
from collections.abc import Callable

import pytest
from harness.history import Event, Past
from harness.mix import check_mix

GOOD: list[Event] = [
    {"t": 0.0, "op": "run", "scenario": "T7"},
    {"t": 0.1, "op": "assign", "client": 0},
    {"t": 0.1, "op": "assign", "client": 1},
    {"t": 1.0, "op": "txn", "client": 0, "type": "ok", "sends": [[0, 1], [1, 2]], "polls": []},
    {"t": 2.0, "op": "txn", "client": 0, "type": "info", "sends": [[0, 3], [0, 4]], "polls": []},
    {"t": 3.0, "op": "txn", "client": 0, "type": "info", "sends": [[0, 5], [1, 6]], "polls": []},
    {"t": 4.0, "op": "txn", "client": 0, "type": "ok", "sends": [[0, 7]], "polls": [[0, 0, 1]]},
    {"t": 5.0, "op": "txn", "client": 1, "type": "ok", "sends": [], "polls": [[0, 0, 1], [0, 4, 5], [1, 0, 2]]},
    {"t": 6.0, "op": "assign", "client": 1},
    {"t": 7.0, "op": "txn", "client": 1, "type": "ok", "sends": [], "polls": [[0, 0, 1], [0, 4, 5], [0, 6, 7]]},
    *(
        {"t": 9.0, "op": "log", "topic": "ints", "partition": key, "offset": offset, "value": number}
        for key, offset, number in ((0, 0, 1), (1, 0, 2), (0, 4, 5), (1, 2, 6), (0, 6, 7))
    ),
    {"t": 9.5, "op": "ends", "topic": "ints", "committed": {"0": 8, "1": 4}, "all": {"0": 8, "1": 4}},
]
FIRST, TORN, LAST_SEND, POLLER, MOVED = 3, 5, 6, 7, 9  # places in it


def lose(events: list[Event]) -> None:
    events[FIRST]["sends"].append([0, 99])


def tear(events: list[Event]) -> None:
    events[TORN]["sends"].append([0, 98])


def repeat(events: list[Event]) -> None:
    events.append({"t": 9.0, "op": "log", "topic": "ints", "partition": 1, "offset": 5, "value": 7})


def read_aborted(events: list[Event]) -> None:
    events[POLLER]["polls"].append([0, 2, 3])


def read_another(events: list[Event]) -> None:
    events[POLLER]["polls"][1][2] = 7


def go_back(events: list[Event]) -> None:
    events[POLLER]["polls"].append([1, 0, 2])


def skip(events: list[Event]) -> None:
    del events[MOVED]["polls"][1]


def read_own(events: list[Event]) -> None:
    events[LAST_SEND]["polls"] += [[0, 4, 5], [0, 6, 7]]


def appear(events: list[Event]) -> None:
    events.append({"t": 9.0, "op": "log", "topic": "ints", "partition": 1, "offset": 5, "value": 77})


def leave_open(events: list[Event]) -> None:
    events[-1]["committed"]["1"] = 3


SPOILT: list[tuple[Callable[[list[Event]], None], str]] = [
    (lose, "lost-write"),
    (tear, "torn-transaction"),
    (repeat, "duplicate"),
    (read_aborted, "G1a"),
    (read_another, "inconsistent-offsets"),
    (go_back, "nonmonotonic-poll"),
    (skip, "poll-skip"),
    (read_own, "precommitted-read"),
    (appear, "phantom"),
    (leave_open, "hanging-transaction"),
]


def test_a_good_history_has_no_anomaly() -> None:
    assert check_mix(Past(GOOD)).anomalies == []


@pytest.mark.parametrize(("spoil", "name"), SPOILT, ids=lambda item: getattr(item, "__name__", item))
def test_every_anomaly_is_found_and_named(spoil: Callable[[list[Event]], None], name: str) -> None:
    events = copy.deepcopy(GOOD)
    spoil(events)
    assert name in {anomaly.name for anomaly in check_mix(Past(events)).anomalies}
