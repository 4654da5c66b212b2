"""Whole workers on a real Kafka, held to an oracle that reads nothing but the records topic."""

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from workers import RUN, RUN_FAKE, Site, ThreadWorker, make_config, start_process, until, with_slot

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Topics
from streamproc.kafka.properties import client_properties
from streamproc.messages import Ask, Query, decode_head
from streamproc.records import Trade, encode_record

pytestmark = pytest.mark.broker

NUM_PARTITIONS = 3
SYMBOLS = ["BTC", "ETH", "SOL", "XRP", "ADA"]
MANY = [f"BE{number}" for number in range(16)]  # records for every partition
TRIGGERED = [
    Query("always-2", "Is {last} {count}?", every=2, max_tokens=5),
    Query("change-3", "up?", every=3, emit="change", max_tokens=1),
    Query("some-5", "{session} vwap {vwap} hi {high}", "[BE]*", every=5, max_tokens=9),
    Query("number-4", "{session} how many?", every=4, answer=AnswerType("number"), max_tokens=5),
]
IDLE = Query("idle", "now {last}?", max_tokens=4)
NEWS = Query("news", "now?", emit="change", max_tokens=1)


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    return Site(make_config(make_topics(NUM_PARTITIONS), bootstrap_servers), NUM_PARTITIONS)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`running(config, what)` -> a worker process; killed with the test at the latest."""
    processes: list[subprocess.Popen[str]] = []

    def start(config: Config, what: Sequence[str]) -> subprocess.Popen[str]:
        processes.append(start_process(config, tmp_path, what))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def trades(start: int, count: int, symbols: list[str] = SYMBOLS) -> list[Trade]:
    """`count` trades of several symbols in turn, no two alike; `start` goes on from an earlier call."""
    return [
        Trade(symbols[i % len(symbols)], 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", str(1 + i % 9))
        for i in range(start, start + count)
    ]


def check_triggered(site: Site) -> None:
    """Every triggered answer is there, once, as the oracle says."""
    found, expected = site.triggered(TRIGGERED), site.expected(TRIGGERED)
    assert found == expected
    ids = [answer.id for answer in site.answers() if answer.kind == "flash"]
    assert len(ids) == len(set(ids))


def is_member(site: Site) -> bool:
    """Whether anybody is in the worker's group."""
    admin = AdminClient({"bootstrap.servers": site.config.kafka["bootstrap.servers"]})
    group = site.config.worker.group
    return bool(admin.describe_consumer_groups([group])[group].result().members)


def test_records_become_the_answers_that_a_stateless_recompute_gives(site: Site) -> None:
    site.register([*TRIGGERED, IDLE, NEWS])
    with ThreadWorker(site.config):
        site.send_records(trades(0, 400))
        site.settle()
        newest = {m.key: m.offset for m in site.read(site.config.topics.records)}
        until(
            lambda: (
                {(a.session.encode(), a.as_of.offset) for a in site.answers() if a.query_id == "idle" and a.as_of}
                >= set(newest.items())
            ),
            "idle answers at the newest records",
        )
    check_triggered(site)
    assert site.read(site.config.topics.dead) == []
    answers = site.answers()
    for session in SYMBOLS:
        texts = [a.text for a in answers if a.query_id == "news" and a.session == session]
        assert all(a != b for a, b in itertools.pairwise(texts))


def test_an_ask_has_seen_the_offset_that_it_insists_on(site: Site) -> None:
    with ThreadWorker(site.config):
        site.send_records(trades(0, 20))
        here = site.send(site.config.topics.records, b"BTC", encode_record(Trade("BTC", 1, "7.5", "1")))
        site.ask(Ask("now", "BTC", "how?", min_offset=here.offset, max_tokens=4))
        site.ask(Ask("later", "BTC", "how?", min_offset=here.offset + 1, max_tokens=4))
        until(lambda: "now" in site.replies(), "the first reply")
        assert "later" not in site.replies()
        site.send(site.config.topics.records, b"BTC", encode_record(Trade("BTC", 2, "8.5", "1")), here.partition)
        replies = until(lambda: site.replies() if len(site.replies()) == 2 else None, "both replies")
    seen = {name: [answer.as_of.offset for answer in found if answer.as_of] for name, found in replies.items()}
    assert seen == {"now": [here.offset], "later": [here.offset + 1]}


def test_a_restart_after_hops_continues_as_if_nothing_had_happened(site: Site) -> None:
    site.register(TRIGGERED)
    for turn in range(3):
        with ThreadWorker(site.config):
            site.send_records(trades(turn * 111, 111))
            if turn != 1:
                site.settle()
    heads = {}
    for message in site.read(site.config.topics.sessions):
        heads[message.key] = decode_head(message.value or b"")
    assert len(heads) == len(SYMBOLS)
    assert all(head.records_before > 0 for head in heads.values())
    check_triggered(site)


def test_an_epoch_that_is_aborted_from_outside_is_rolled_back_and_done_again(site: Site) -> None:
    site.register(TRIGGERED)
    with ThreadWorker(site.config) as worker:
        counters = worker.processor.counters
        for turn in range(3):
            epochs, aborted = counters.epochs, counters.aborted_epochs
            site.send_records(trades(turn * 100, 50))
            until(partial(lambda seen: counters.epochs > seen, epochs), "an epoch")
            intruder = Producer({**client_properties(site.config), "transactional.id": worker.transactional_id})
            intruder.init_transactions(10)
            site.send_records(trades(turn * 100 + 50, 50))
            until(partial(lambda seen: counters.aborted_epochs > seen, aborted), "an aborted epoch")
        site.settle()
    check_triggered(site)


def test_answered_asks_are_remembered_across_a_restart_while_an_older_one_still_waits(site: Site) -> None:
    site.send_records(trades(0, 30, ["BTC"]))
    with ThreadWorker(site.config):
        far = site.ask(Ask("far", "BTC", "how?", min_offset=40, max_tokens=3))
        for number in range(3):
            site.ask(Ask(f"near-{number}", "BTC", "how?", max_tokens=3))
        until(lambda: len(site.replies()) == 3, "replies to the asks that need not wait")
        until(
            lambda: site.committed(site.config.topics.asks)[far.partition] == (far.offset, "answered +1-3"),
            "the answered asks as metadata of the offset",
        )
    with ThreadWorker(site.config):
        site.send_records(trades(30, 11, ["BTC"]))
        site.settle()
    replies = site.replies()
    assert {name: len(found) for name, found in replies.items()} == {"far": 1, "near-0": 1, "near-1": 1, "near-2": 1}
    assert replies["far"][0].as_of is not None
    assert replies["far"][0].as_of.offset == 40
    assert replies["near-0"][0].text == replies["near-2"][0].text


def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_leaves(site: Site) -> None:
    site.register(TRIGGERED)
    with ThreadWorker(with_slot(site.config, "a")) as first:
        second = ThreadWorker(with_slot(site.config, "b"))
        try:
            until(
                lambda: first.owned and second.owned and len(first.owned + second.owned) == NUM_PARTITIONS,
                "partitions for both",
            )
            site.send_records(trades(0, 200, MANY))
            site.settle()
            shares = [worker.processor.counters.records for worker in (first, second)]
        finally:
            second.stop()
        until(lambda: len(first.owned) == NUM_PARTITIONS, "all partitions back with the first")
        site.send_records(trades(200, 200, MANY))
        site.settle()
    assert all(shares)
    assert all(
        any(b'"%s"' % slot in m.headers["timings"] for m in site.read(site.config.topics.answers))
        for slot in (b"a", b"b")
    )
    check_triggered(site)


GOOD = encode_record(Trade("BTC", 5, "1.5", "2"))
BAD_RECORDS = {
    "malformed JSON": (b"BTC", b'{"kind": "trade", '),
    "missing field": (b"BTC", GOOD.replace(b'"px":"1.5",', b"")),
    "text that is no number": (b"BTC", GOOD.replace(b'"1.5"', b'"NaN"')),
    "non-finite number": (b"BTC", GOOD.replace(b'"1.5"', b"1e999")),
    "unknown kind": (b"BTC", GOOD.replace(b"trade", b"wedge")),
    "wrong key": (b"ETH", GOOD),
    "no key": (None, GOOD),
    "oversized": (b"BTC", GOOD[:-1] + b',"note":"' + b"x" * 70_000 + b'"}'),
    "null value": (b"BTC", None),
    "not an object": (b"BTC", b"[1, 2]"),
    "not UTF-8": (b"BTC", b"\xff\xfe"),
}
BAD_QUERIES = {
    "empty-question": b'{"question": " "}',
    "unknown-placeholder": b'{"question": "how is {colour}?"}',
    "not-json": b"{]",
}
BAD_ASKS = {"malformed": b"{", "no session": b'{"id": "x", "question": "how?"}'}


def test_bad_records_go_to_the_dead_topic_with_their_bytes_and_the_worker_goes_on(site: Site) -> None:
    topics, sent = site.config.topics, {}
    site.register(TRIGGERED)
    with ThreadWorker(site.config):
        for name, (key, value) in BAD_RECORDS.items():
            site.send_records(trades(len(sent) * 10, 10))
            position = site.send(topics.records, key, value)
            sent[position] = (name, key, value)
        site.send_records(trades(1_000, 20))
        site.settle()
    letters = site.read(topics.dead)
    assert len(letters) == len(sent)
    for letter in letters:
        place = (int(letter.headers["partition"]), int(letter.headers["offset"]))
        name, key, value = sent.pop(place)
        assert (letter.key, letter.value) == (key, value), name
        assert letter.headers["topic"] == topics.records.encode()
        assert letter.headers["code"] == b"BAD_RECORD"
        assert letter.headers["reason"], name
    bad = {(int(m.headers["partition"]), int(m.headers["offset"])) for m in letters}
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED, lambda m: (m.partition, m.offset) not in bad)


def test_bad_questions_go_to_the_dead_topic_once_and_an_asker_gets_the_reason(site: Site) -> None:
    topics = site.config.topics
    for query_id, value in BAD_QUERIES.items():
        site.send(topics.control, query_id.encode(), value)
    site.send_records(trades(0, 20))
    sent = set(BAD_QUERIES.values()) | set(BAD_ASKS.values())
    with ThreadWorker(site.config):
        for value in BAD_ASKS.values():
            site.send(topics.asks, b"BTC", value)
        site.ask(Ask("nobody", "DOGE", "how?"))
        site.ask(Ask("long", "BTC", "how? " * 100))
        site.ask(Ask("fine", "BTC", "how?", max_tokens=3))
        site.settle()
        until(lambda: len(site.read(topics.dead)) == len(sent), "all dead letters")
    with ThreadWorker(site.config):
        site.ask(Ask("again", "BTC", "how?", max_tokens=3))
        site.settle()
    letters = site.read(topics.dead)
    assert len(letters) == len(sent)
    assert {letter.value for letter in letters} == sent
    assert {(m.headers["topic"], m.headers["code"]) for m in letters} == {
        (topics.control.encode(), b"BAD_QUERY"),
        (topics.asks.encode(), b"BAD_ASK"),
    }
    replies = {name: found[0] for name, found in site.replies().items()}
    assert "DOGE" in (replies["nobody"].error or "")
    assert "max_question_tokens" in (replies["long"].error or "")
    assert replies["fine"].text == replies["again"].text
    assert replies["fine"].error is None


def test_a_killed_worker_loses_no_answer_and_its_successor_repeats_none(
    site: Site, running: Callable[..., subprocess.Popen[str]]
) -> None:
    site.register(TRIGGERED)
    for turn in range(2):
        worker = running(site.config, RUN_FAKE)
        num_before = len(site.answers())
        site.send_records(trades(turn * 400, 200))
        until(partial(lambda least: len(site.answers()) > least, num_before), "some answers")
        site.send_records(trades(turn * 400 + 200, 200))
        worker.kill()
        worker.wait()
    with ThreadWorker(site.config):
        site.settle()
    check_triggered(site)


def test_a_signal_to_stop_ends_the_worker_cleanly_with_all_its_answers_given(
    site: Site, running: Callable[..., subprocess.Popen[str]]
) -> None:
    engine = replace(site.config.engine, device="cpu", dtype="float32", block_size=16, context_tokens=256)
    site.config = with_slot(replace(site.config, engine=engine), "")    # in a slot it would stay a member for a while
    site.register(TRIGGERED)
    worker = running(site.config, RUN)
    site.send_records(trades(0, 40))
    site.settle()
    started = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    out, _ = worker.communicate(timeout=15)
    assert worker.returncode == 0
    assert time.monotonic() - started < 10
    assert json.loads(out)["records"] == 40
    assert not is_member(site)
    check_against_the_model(site)


def check_against_the_model(site: Site) -> None:
    """Every triggered answer is the greedy continuation of its context, computed from nothing."""
    from streamproc.engine.build import build_engine, stateless_answer
    from streamproc.state.ending import finished_text

    engine = build_engine(site.config)

    def answer(*asked: Any) -> str | None:
        renderer, ids, max_tokens, stop, kind = asked
        return finished_text(renderer, stateless_answer(engine, ids, max_tokens, stop, kind), stop, max_tokens)

    try:
        expected = site.expected(TRIGGERED, renderer=engine.renderer, answer=answer)
    finally:
        engine.close()
    assert site.triggered(TRIGGERED) == expected
