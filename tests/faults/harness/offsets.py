"""Anomalies that show in offsets alone: what the reader saw, and what stands in the logs at the end."""

import itertools
from collections.abc import Iterator

import orjson

from harness.anomalies import Anomaly
from harness.history import Past

Place = tuple[int, int]  # partition and offset


def logged(past: Past, topic: str) -> dict[Place, tuple[str | None, str | None]]:
    """Key and value of every message that a topic holds at the end."""
    return {(e["partition"], e["offset"]): (e["key"], e["value"]) for e in past.of("log", topic=topic)}


def unacknowledged(past: Past) -> Iterator[Anomaly]:
    """Acknowledged messages that are not in the log, or are another's there, or are there twice."""
    for topic in ("records", "asks", "control"):
        there = logged(past, topic)
        gone = {int(p): o for e in past.of("cut", topic=topic) for p, o in e["before"].items()}
        anew_at = max((event["t"] for event in past.of("anew", topic=topic)), default=0.0)
        for event in past.of("send", topic=topic):
            if event["t"] < anew_at:
                continue
            place = (event["partition"], event["offset"])
            found = there.get(place)
            if found is None and place[1] >= gone.get(place[0], 0):
                yield Anomaly("lost-write", f"{topic} {place}: acknowledged, not in the log: {event['value']}")
            elif found is not None and found != (event["key"], event["value"]):
                yield Anomaly("inconsistent-offsets", f"{topic} {place}: {event['value']} was acknowledged, {found[1]}")
        yield from _twice(topic, there)


def _twice(topic: str, there: dict[Place, tuple[str | None, str | None]]) -> Iterator[Anomaly]:
    """Records and asks have a number of their own, so no two are alike."""
    first: dict[tuple[str | None, str], Place] = {}
    for place, (key, value) in sorted(there.items()):
        if value and is_numbered(topic, value) and first.setdefault((key, value), place) != place:
            yield Anomaly("duplicate", f"{topic} {place} repeats {first[key, value]}: {value}")


def is_numbered(topic: str, value: str) -> bool:
    """Whether a message is one of those that are all different; poison is not."""
    if topic == "control" or not value.startswith("{"):
        return False
    try:
        doc = orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return "ts_event_ns" in doc or "id" in doc


def polls(past: Past) -> Iterator[Anomaly]:
    """The reader's offsets, one partition after the other, against the answers topic at the end."""
    there = logged(past, "answers")
    order: dict[int, list[int]] = {}
    for event in past.of("seen"):
        place = (event["partition"], event["offset"])
        order.setdefault(place[0], []).append(place[1])
        if place not in there:
            yield Anomaly("G1a", f"answers {place}: seen, but no committed transaction wrote it: {event['value']}")
        elif there[place] != (event["key"], event["value"]):
            yield Anomaly("inconsistent-offsets", f"answers {place}: seen {event['value']}, now {there[place][1]}")
    for partition, offsets in order.items():
        yield from _order(partition, offsets, sorted(o for p, o in there if p == partition))
    seen = {(event["partition"], event["offset"]) for event in past.of("seen")}
    for place in sorted(there.keys() - seen):
        yield Anomaly("unseen", f"answers {place}: committed, never seen: {there[place][1]}")


def _order(partition: int, offsets: list[int], committed: list[int]) -> Iterator[Anomaly]:
    """Each offset seen must be followed by the next one that is committed."""
    after = dict(itertools.pairwise(committed))
    for before, here in itertools.pairwise(offsets):
        if here <= before:
            yield Anomaly("nonmonotonic-poll", f"answers partition {partition}: {here} was read after {before}")
        elif after.get(before, here) < here:
            yield Anomaly("poll-skip", f"answers partition {partition}: {here} after {before}, over {after[before]}")


def torn(past: Past) -> Iterator[Anomaly]:
    """Answers and the offsets they were computed from are one transaction."""
    for event in past.of("sample"):
        for partition, as_of in event["seen"].items():
            committed = event["committed"].get(partition)
            if committed is not None and as_of >= committed:
                yield Anomaly(
                    "precommitted-read",
                    f"at {event['t']} s: an answer as of record {as_of} of partition {partition} is visible, "
                    f"the group's committed offset is {committed}",
                )


def hanging(past: Past) -> Iterator[Anomaly]:
    """At the end nothing is open: what is in the log can be read."""
    for event in past.of("ends"):
        for partition, end in event["all"].items():
            committed = event["committed"].get(partition)
            if committed != end:
                yield Anomaly(
                    "hanging-transaction",
                    f"{event['topic']} partition {partition}: committed messages end at {committed}, the log at {end}",
                )


def liveness(past: Past) -> Iterator[Anomaly]:
    for event in past.of("settled", ok=False):
        yield Anomaly("stuck", event["why"])
    for event in past.of("worker", what="crash"):
        yield Anomaly("crash", f"worker {event['slot']}: {event['line']}")


def longest_stall_s(past: Past) -> float:
    """Longest time in which a partition gave no new answer while records came for it, in seconds."""
    sent: dict[int, list[float]] = {}
    for event in past.of("send", topic="records"):
        sent.setdefault(event["partition"], []).append(event["t"])
    seen: dict[int, list[float]] = {}
    for event in past.of("seen"):
        as_of = orjson.loads(event["value"]).get("as_of")
        if as_of:
            seen.setdefault(as_of["partition"], []).append(event["t"])
    gaps = [
        later - earlier
        for partition, times in sent.items()
        for earlier, later in itertools.pairwise([min(times), *seen.get(partition, [])])
        if earlier < max(times)
    ]
    return max(gaps, default=0.0)
