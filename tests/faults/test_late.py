"""A refused ask is right only where its partition was as far behind as the refusal says, and for as long."""

from dataclasses import replace

import pytest
from harness.checker import check
from harness.history import Event, Past
from harness.late import Progress

from streamproc.messages import Answer, Ask, AsOf

ASK = Ask("a1", "S", "up?", min_offset=50, max_tokens=1)
REFUSAL = Answer("a1", "ask", "S", "", None, None, None, "fake", error="too late: r partition 0 is seen up to 49")


def told(at: float, answer: Answer, op: str = "seen") -> Event:
    place = {"topic": "answers", "partition": 0, "offset": int(at)}
    return {"op": op, "t": at, **place, "key": answer.id, "value": answer.encode().decode()}


def answered(at: float, offset: int, partition: int = 0) -> Event:
    as_of = AsOf("r", partition, 0, offset, 0)
    return told(at, Answer(f"f{at}", "flash", "S", "", as_of, "yes", None, "fake", "q", "1"))


def asked(at: float, op: str = "send") -> Event:
    place = {"topic": "asks", "partition": 0, "offset": 0}
    return {"op": op, "t": at, **place, "key": "S", "value": ASK.encode().decode()}


@pytest.mark.parametrize(
    ("refused_at", "answers", "is_right"),
    [
        (70.0, [answered(60.0, 40)], True),
        (70.0, [answered(60.0, 40), answered(40.0, 51, partition=1)], True),
        (70.0, [answered(64.0, 50)], True),  # it has come there while the refusal was on its way
        (70.0, [answered(40.0, 50)], False),
        (30.0, [answered(20.0, 40)], False),  # before its time
        (70.0, [], True),
    ],
)
def test_too_late_is_right_if_nothing_shows_that_the_partition_had_come_so_far(
    refused_at: float, answers: list[Event], is_right: bool
) -> None:
    progress = Progress(Past([asked(5.0), *answers, told(refused_at, REFUSAL)]))
    assert progress.is_too_late(ASK, 0, REFUSAL) is is_right


def test_no_other_refusal_is_excused() -> None:
    other = replace(REFUSAL, error="too many asks are waiting")
    assert not Progress(Past([asked(5.0), told(70.0, other)])).is_too_late(ASK, 0, other)


@pytest.mark.parametrize(("refused_at", "names"), [(70.0, []), (30.0, ["wrong-answer"])])
def test_the_checker_excuses_what_was_too_late(refused_at: float, names: list[str]) -> None:
    topics = {role: role for role in ("records", "asks", "control", "answers", "sessions", "dead")}
    run = {"op": "run", "t": 0.0, "topics": topics, "context_tokens": 100, "keep_tokens": 50}
    group = {"op": "group", "t": 90.0, "topic": "asks", "committed": {"0": 1}}
    reply = [told(refused_at, REFUSAL, op) for op in ("seen", "log")]
    verdict = check(Past([run, asked(5.0), asked(80.0, "log"), *reply, group]))
    assert [anomaly.name for anomaly in verdict.anomalies] == names
