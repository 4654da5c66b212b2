"""Partitions that come and go at any moment, and when an epoch is due: the tables, and the loop on fakes."""

import random
from dataclasses import replace

import pytest
from confluent_kafka import TopicPartition
from fakes import FakeFlight, FakeSource
from world import World, make_config, random_record

from streamproc.config import Config, Worker
from streamproc.kafka.epoch import transactional_id
from streamproc.kafka.gaps import Found, find_gap
from streamproc.kafka.source import Source
from streamproc.messages import Ask, Head, Mark, Query
from streamproc.state.epoch import Message
from streamproc.state.lifecycle import ACTS, NEXT, Act, Event, Phase
from streamproc.state.pace import Pace
from streamproc.state.pressure import Pressure
from streamproc.state.stamp import EVER, FRESH, Stamp, Suspects, Work, decode_stamp

QUERY = Query("q", "how is {last}?", every=1, max_tokens=5)


def make_world(num_partitions: int = 2, **worker: object) -> World:
    config = make_config()
    config = replace(config, worker=replace(config.worker, **worker))  # type: ignore[arg-type]
    world = World(random.Random(1), config, num_partitions, num_blocks=200)
    world.rebalance_share = 0
    world.register(QUERY)
    return world


def fill(world: World, number: int = 0, count: int = 6) -> None:
    for _ in range(count):
        world.log.produce(number, random_record(world.rng, "AB"[number]))


def test_every_event_has_its_act_in_every_phase_and_only_what_is_gone_has_none() -> None:
    phases = [None, *(phase for phase in Phase if phase is not Phase.GONE)]
    assert set(ACTS) == {(phase, event) for phase in phases for event in Event}
    assert all(Phase.GONE in NEXT[phase] for phase in phases if phase)
    assert {event for (_, event), act in ACTS.items() if act is Act.FINISH} == {Event.REVOKED}


EVENTS = ["assigned", "revoked", "lost"]


@pytest.mark.parametrize("seed", range(25))
def test_events_in_any_order_at_any_moment_lose_no_answer_and_repeat_none(seed: int) -> None:
    world = make_world()
    rng = random.Random(seed)
    source: FakeSource = world.processor.source  # type: ignore[assignment]
    world.processor.runner.looks = lambda: rng.choice((0, 1, 4))  # type: ignore[attr-defined]
    for _ in range(60):
        fill(world, rng.randrange(2), 1)
        world.step()
        if rng.random() < 0.4:
            number, event = rng.randrange(2), rng.choice(EVENTS)
            if event == "assigned":
                source.assign([number])
            else:
                getattr(world.processor, event)([number])
                source.positions = {where: at for where, at in source.positions.items() if where[1] != number}
                if rng.random() < 0.5:
                    source.assign([number])
            world.processor.check()
    source.assign([n for n in range(2) if n not in world.processor.partitions])
    world.drain()
    ids = [answer.id for answer in world.answers()]
    num_records = sum(len(world.log.read(world.config.topics.records, number)) for number in range(2))
    assert len(ids) == len(set(ids)) == num_records


@pytest.mark.parametrize("event", ["revoked", "lost"])
def test_a_partition_that_restores_may_go_and_come_back_at_once(event: str) -> None:
    world = make_world()
    fill(world, count=20)
    world.drain()
    world.crash()
    source: FakeSource = world.processor.source  # type: ignore[assignment]
    source.batch = 1
    world.processor.step()
    assert world.processor.partitions[0].phase is Phase.RESTORING
    before = dict(world.log.committed)
    getattr(world.processor, event)([0])
    source.assign([0])
    assert world.log.committed[(world.config.topics.records, 0)][0] == before[(world.config.topics.records, 0)][0]
    world.drain()
    assert len(world.answers()) == len({answer.id for answer in world.answers()}) == 20


def test_what_was_asked_of_a_partition_that_goes_is_answered_first() -> None:
    world = make_world(revoke_ms=1_000)
    world.source.batch = 50
    fill(world, count=9)
    ask = Ask("ask", "A", "how?", max_tokens=4)
    world.processor.step()
    world.log.append(world.config.topics.asks, 0, b"A", ask.encode())
    world.processor.step()
    assert len(world.answers()) < 10
    world.processor.revoked([0])
    assert len(world.answers()) == 10
    assert world.log.committed[(world.config.topics.records, 0)][0] == 9
    assert world.log.committed[(world.config.topics.asks, 0)][0] == 1


def test_work_on_partitions_that_go_is_dropped_at_the_deadline_and_done_by_the_next_owner() -> None:
    world = make_world(revoke_ms=100)
    fill(world, count=12)

    class Slow(FakeFlight):
        def wait(self) -> dict[int, tuple[int, ...]]:
            world.clock.now_s += 0.06
            return super().wait()

    runner = world.processor.runner
    runner.launch = lambda plan: Slow(runner, plan)  # type: ignore[method-assign]
    world.processor.step()
    began = world.clock.now_s
    world.processor.revoked([0])
    assert world.clock.now_s - began < 0.25
    assert len(world.answers()) < 12
    world.source.positions = {}
    world.source.assign([0, 1])
    world.drain()
    assert len(world.answers()) == len({answer.id for answer in world.answers()}) == 12


def test_an_epoch_that_fails_while_partitions_go_takes_back_only_those_that_stay() -> None:
    world = make_world()
    for number in range(2):
        fill(world, number)
    world.step()
    world.fate = "abort"
    rewound: list[list[int]] = []
    rewind = world.source.rewind
    world.source.rewind = lambda fallbacks: rewound.append(sorted(fallbacks)) or rewind(fallbacks)  # type: ignore[method-assign]
    world.processor.revoked([0])
    world.fate = "ok"
    assert rewound == [[1]]
    world.source.positions = {where: at for where, at in world.source.positions.items() if where[1]}
    world.source.assign([0])
    world.drain()
    assert len(world.answers()) == len({answer.id for answer in world.answers()}) == 12


def test_an_epoch_is_due_by_time_bytes_or_answers_whatever_comes_first() -> None:
    pace = Pace(1.0, most_bytes=100, most_answers=3, committed_at=5.0)
    assert not pace.is_due(5.9)
    assert pace.is_due(6.0)
    pace.take(99)
    assert not pace.is_due(5.9)
    pace.take(1)
    assert pace.is_due(5.0)
    pace.start_over(7.0)
    for _ in range(3):
        assert not pace.is_due(7.5)
        pace.answer()
    assert pace.is_due(7.5)


@pytest.mark.parametrize("worker", [{"commit_bytes": 300}, {"commit_answers": 4}])
def test_uncommitted_work_is_bounded_by_bytes_and_answers(worker: dict[str, int]) -> None:
    world = make_world(commit_interval_ms=60_000, **worker)
    for _ in range(40):
        fill(world, count=1)
        world.processor.step()
    assert 4 < world.processor.counters.epochs <= 20


def test_records_wait_with_hysteresis_on_tokens_and_on_cells() -> None:
    pressure = Pressure(most_tokens=100, num_cells=1_000)
    looks = [((100, 800), False), ((0, 801), True), ((0, 400), True), ((60, 0), True), ((49, 399), False),
             ((101, 0), True), ((0, 0), False)]  # fmt: skip
    for (num_tokens, num_needed), is_high in looks:
        pressure.update(num_tokens, num_needed)
        assert pressure.is_high == is_high, (num_tokens, num_needed)


def test_polling_goes_on_while_records_wait_for_cells() -> None:
    world = World(random.Random(1), make_config(backlog_tokens=2**30), num_partitions=1, num_blocks=60)
    world.rebalance_share = 0
    poll, polled = world.source.poll, list[bool]()

    def watched(timeout_s: float) -> list[Message]:
        polled.append(world.processor.care.is_holding)
        return poll(timeout_s)

    world.source.poll = watched  # type: ignore[method-assign]
    for turn in range(60):
        world.log.produce(0, random_record(world.rng, f"S{turn % 6}"))
    world.drain()
    assert any(polled)
    assert not world.processor.care.is_holding


def test_partitions_that_come_while_a_worker_leaves_are_not_looked_at() -> None:
    config = replace(make_config(), kafka={"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    listener = make_world().processor
    source = Source(config, listener, print)
    consumer = source._consumer
    source._log.recover = lambda numbers: pytest.fail("it asks Kafka")  # type: ignore[method-assign]
    source._is_closing = True
    both = [TopicPartition(topic, 7) for topic in (config.topics.records, config.topics.asks)]
    source._on_assign(consumer, both)
    consumer.incremental_assign(both)  # as the library does where nobody else has
    source._on_revoke(consumer, both)
    assert 7 not in listener.partitions
    source.close()


def test_a_stamp_says_to_the_next_owner_how_many_died_and_at_what() -> None:
    stamp = Stamp("w 1 2", "id", False, Work(17, 18, True), (Suspects(10, 74, 2), Suspects(17, 18, 3, 1)), {5: 3, 9: 0})
    assert decode_stamp(stamp.encode()) == stamp
    after = stamp.succeeded()
    assert (after.epoch, after.work, after.num_deaths) == ("", None, 4)
    assert after.suspects == (Suspects(10, 74, 2), Suspects(17, 18, 4, 2))
    assert replace(stamp, left=True).succeeded() == replace(stamp, work=None, epoch="")
    assert replace(stamp, work=None).succeeded() == replace(stamp, work=None, epoch="")
    assert decode_stamp("") == decode_stamp("moved by hand") == FRESH
    assert FRESH.succeeded().num_deaths == 0
    assert stamp.after(6).poisoned == {9: 0}


@pytest.mark.parametrize(
    "field",
    [
        '"poisoned":{"28":1e300}', '"poisoned":{"-5":1}', '"poisoned":[1]', f'"poisoned":{{"{"9" * 30}":1}}',
        '"left":"no"', '"work":[1e999,2,false]', '"work":[1,-2,false]', '"work":[1,2,"x"]', '"work":7', '"work":[1]',
        '"suspects":[[1,2,1e300,0]]', '"suspects":[[1,2,-3,0]]', '"suspects":[1]', '"suspects":[[1]]',
    ],
)  # fmt: skip
def test_a_stamp_that_does_not_fit_says_nothing(field: str) -> None:
    assert decode_stamp(f'{{"epoch":"e","topic":"t",{field}}}') == FRESH


def test_deaths_narrow_down_the_records_that_may_be_the_cause() -> None:
    works = [Work(5, EVER), Work(10, 74), Work(20, 21, True), Work(30, 31, True), Work(30, 31, True)]
    stamp = Stamp()
    for work in works:
        stamp = replace(stamp, work=work).succeeded()
    narrowed = (Suspects(20, 21, 3, 1), Suspects(30, 31, 4, 2))
    assert stamp.suspects == (Suspects(5, EVER, 1), Suspects(10, 74, 2), *narrowed)
    assert stamp.moved(21).suspects == (Suspects(10, 74, 2), Suspects(30, 31, 4, 2))
    assert stamp.moved(74).suspects == ()
    for start in range(100, 200):
        stamp = replace(stamp, work=Work(start, start + 1, True)).succeeded()
    assert len(replace(stamp, poisoned=dict.fromkeys(range(10**12, 10**12 + 64), 10)).encode()) < 4_096


def find(**changes: object) -> str:
    found = Found("records", 2, "g", "id", 10, 50, 20, "id", {})
    gap = find_gap(replace(found, **changes))  # type: ignore[arg-type]
    return gap.line("fail") if gap else ""


AHEAD = {"A": Head("A", 12, 3, {}, "id", 20)}
HEADS = {"A": Head("A", 12, 3, {"q": Mark("v", 15, "d")}, "id")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"heads": HEADS}, ""),
        ({"committed": -1, "committed_topic_id": ""}, ""),
        ({"committed_topic_id": ""}, ""),
        ({"topic_id": ""}, ""),
        ({"committed": 10}, ""),
        ({"committed": 16, "heads": HEADS}, ""),
        ({"committed": 15, "heads": HEADS}, "offset 15 is committed, but 1 sessions' heads know of later records"),
        ({"committed": 21, "heads": AHEAD}, ""),
        ({"committed": 20, "heads": AHEAD}, "that of 'A' of 20: somebody has set group g back"),
        ({"committed": 50}, ""),
        ({"committed": 9}, "records 9 to 9 were deleted before they were processed"),
        ({"committed": 51}, "offset 51 is committed, the log ends at 50"),
        ({"topic_id": "other"}, "was deleted and made again since group g read it"),
        ({"topic_id": "other", "committed": -1, "committed_topic_id": "", "heads": HEADS}, "deleted and made again"),
        ({"committed": -1, "committed_topic_id": "", "heads": HEADS}, "the committed offset of group g is gone"),
    ],
)
def test_a_gap_is_named_in_one_line_that_says_what_would_do(changes: dict[str, object], words: str) -> None:
    line = find(**changes)
    assert words in line
    assert bool(words) == bool(line)
    assert not line or ("worker.on_gap = rebuild" in line and "\n" not in line and "records partition 2" in line)


def test_settings_of_membership_have_defaults_that_stop_rather_than_guess() -> None:
    assert Config().worker.on_gap == "fail"
    assert Config().worker.poison_after == 3


def test_each_pair_of_group_and_slot_has_a_transactional_id_of_its_own() -> None:
    pairs = [("desk", "eu-1"), ("desk-eu", "1")]
    assert len({transactional_id(Config(worker=Worker(group=group, slot=slot))) for group, slot in pairs}) == 2
