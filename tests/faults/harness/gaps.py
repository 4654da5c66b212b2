"""T10: the log no longer fits what was committed. Records were deleted before anybody processed them, the topic was
made anew, partitions were added.

With `worker.on_gap = "fail"` a worker ends with one line that names the gap and the setting; with "rebuild" it says so
and goes on with what there is. What it then answers is held to the stretch of the log that each answer names.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions

from harness.anomalies import Anomaly
from harness.checker import Outcome, Verdict, outcome
from harness.history import Past, bytes_of, read_history
from harness.lab import Lab, Shape, partitions_of
from harness.model import RENDERER, continued, roll
from harness.offsets import hanging, liveness, logged, longest_stall_s, polls, torn, unacknowledged
from streamproc.config import known_settings
from streamproc.errors import BadRecord
from streamproc.kafka.topics import create, load_specs
from streamproc.messages import Query
from streamproc.records import decode_record

PARTS = ("retention", "recreation", "growth")
KNOWS_POLICY = "worker.on_gap" in known_settings()
PLAIN = (Query("plain-2", "what now?", every=2, max_tokens=5), Query("plain-3", "and now?", every=3, max_tokens=3))
SHAPE = Shape(context_tokens=4096, asks_per_s=0, queries=PLAIN)
GAP_S = 30.0  # within which a worker has to find a gap


def policy(name: str) -> dict[str, str]:
    return {"on_gap": name} if KNOWS_POLICY else {}


def settle_and_stop(lab: Lab) -> None:
    """Some records, all processed, and nobody there."""
    lab.workers.start("a")
    assert lab.until_live(), "the worker does not come up"
    lab.drive()
    lab.run(2.0)
    lab.drive_no_more()
    lab.settle()
    lab.workers.stop("a")


def send_more(lab: Lab, seconds: float) -> None:
    lab.drive_again()
    lab.run(seconds)
    lab.drive_no_more()


def cut(lab: Lab) -> None:
    """Retention deletes records that nobody has processed."""
    committed, ends = lab.committed(lab.topics.records), lab.site.ends(lab.topics.records)
    before = {number: (committed[number] + ends[number]) // 2 + 1 for number in ends}
    wanted = [TopicPartition(lab.topics.records, number, offset) for number, offset in before.items()]
    for future in lab.admin.delete_records(wanted, request_timeout=10.0).values():
        future.result()
    lab.history.fault("records deleted", before=before)
    lab.history.add("cut", topic="records", before=before)


def recreate(lab: Lab) -> None:
    """The topic of the same name is another one now; its records begin at 0 again."""
    lab.admin.delete_topics([lab.topics.records])[lab.topics.records].result()
    deadline = time.monotonic() + 20
    specs = [replace(s, partitions=partitions_of(lab.shape)[s.role]) for s in load_specs(lab.topics)]
    while [made for made in create(lab.admin, [s for s in specs if s.role == "records"]) if made.state != "created"]:
        assert time.monotonic() < deadline, "the topic cannot be made again"
        time.sleep(0.2)
    lab.history.fault("topic made anew")
    lab.history.add("anew", topic="records")


def must_refuse(lab: Lab) -> Iterator[Anomaly]:
    """A worker that is to fail at a gap: it ends, by itself, with one line that says what and what would do."""
    lab.workers.is_supervised = False
    lab.workers.start("a")
    lab.until(lambda: bool(lab.workers.deaths), GAP_S)
    said = lab.workers.deaths[-1] if lab.workers.deaths else ""
    lab.workers.close()
    lab.workers.is_supervised = True
    if lab.topics.records not in said or "on_gap" not in said:
        yield Anomaly("silent-gap", f"worker.on_gap = fail: the worker said {said!r}")


def must_tell(lab: Lab, what: str, words: str = "") -> Iterator[Anomaly]:
    said = "\n".join(log.read_text(errors="replace") for log in lab.folder.glob("worker-*.log"))
    if not any(lab.topics.records in line and words in line for line in said.splitlines()):
        yield Anomaly("silent-gap", f"{what}: no worker has said so")


def retention(lab: Lab) -> Verdict:
    """Records deleted before they were processed."""
    settle_and_stop(lab)
    send_more(lab, 1.0)
    cut(lab)
    anomalies = list(must_refuse(with_policy(lab, "fail"))) if KNOWS_POLICY else []
    with_policy(lab, "rebuild").workers.start("a")
    send_more(lab, 1.0)
    lab.write_end()
    return judged(lab, [*anomalies, *must_tell(lab, "records deleted before they were processed")])


def recreation(lab: Lab) -> Verdict:
    """The records topic deleted and made again, with fewer records than were committed."""
    settle_and_stop(lab)
    recreate(lab)
    send_more(lab, 1.0)
    anomalies = list(must_refuse(with_policy(lab, "fail"))) if KNOWS_POLICY else []
    with_policy(lab, "rebuild").workers.start("a")
    send_more(lab, 1.0)
    lab.write_end()
    if KNOWS_POLICY:
        anomalies += must_tell(lab, "topic made anew")
    return judged(lab, anomalies)


def with_policy(lab: Lab, name: str) -> Lab:
    config = lab.workers.config
    lab.workers.config = replace(config, worker=replace(config.worker, **policy(name)))
    return lab


def growth(lab: Lab) -> Verdict:
    """Partitions added while records flow: they are found, and keys that move begin a session of their own there."""
    with_policy(lab, "rebuild").workers.start("a")
    lab.workers.start("b")
    assert lab.until_live(), "the workers do not come up"
    lab.drive()
    lab.run(1.0)
    count = lab.shape.num_partitions + 1
    topics = (lab.topics.sessions, lab.topics.asks, lab.topics.records)
    for future in lab.admin.create_partitions([NewPartitions(name, count) for name in topics]).values():
        future.result()
    lab.history.fault("partitions added")
    lab.grow(count)
    assert lab.until_live(60), f"the new partition is not taken: {lab.workers.owned()}"
    lab.drive_no_more()
    lab.drive_again()  # a producer that knows of it
    lab.run(2.0)
    verdict = lab.finish()
    anomalies = list(must_tell(lab, "partitions added", "the topic had")) if KNOWS_POLICY else []
    return replace(verdict, anomalies=[*verdict.anomalies, *anomalies])


def judged(lab: Lab, anomalies: list[Anomaly]) -> Verdict:
    """Where records are gone only what answers say of themselves can be checked."""
    past = Past(read_history(lab.history.path))
    for look in (unacknowledged, polls, hanging, liveness):
        anomalies += look(past)
    if not past.of("anew"):  # Kafka forgets the offsets of a topic that is deleted
        anomalies += torn(past)
    found = outcome(past)
    anomalies += consistent(found)
    return Verdict(anomalies, longest_stall_s(past), len(logged(past, "answers")), len(past.of("fault")))


def consistent(found: Outcome) -> Iterator[Anomaly]:
    """Every answer that the log still reaches is what its own stretch of the log gives, and stands there once."""
    contexts: dict[tuple[int, str], list[tuple[int, tuple[int, ...]]]] = {}
    for (partition, offset), (key, value) in sorted(logged(found.past, "records").items()):
        try:
            record = decode_record(bytes_of(value), bytes_of(key) or b"")
        except BadRecord:
            continue
        contexts.setdefault((partition, record.sym), []).append((offset, RENDERER.record_ids([record])[0]))
    anew_at = max((event["t"] for event in found.past.of("anew")), default=0.0)
    old = {(e["partition"], e["offset"]) for e in found.past.of("seen") if e["t"] < anew_at}
    for due, answers in found.answers.items():
        fresh = [(place, answer) for place, answer in answers if place not in old]
        if len(fresh) > 1:
            yield Anomaly("duplicate", f"{due} is answered at {[place for place, _ in fresh]}")
        for place, answer in fresh:
            assert answer.as_of is not None
            log = contexts.get((due.partition, due.session), [])
            stretch = [ids for offset, ids in log if answer.as_of.from_offset <= offset <= due.offset]
            is_whole = bool(log) and log[0][0] <= answer.as_of.from_offset
            query = found.versions[due.question].query
            kv = roll(roll(0, RENDERER.prefix_ids), (i for ids in stretch for i in ids))
            text = continued(roll(kv, RENDERER.tail_ids(query.question)), query.max_tokens, RENDERER.stop)
            if is_whole and answer.text != text:
                yield Anomaly("wrong-answer", f"{due} at {place}: {answer.text!r}, its stretch gives {text!r}")
