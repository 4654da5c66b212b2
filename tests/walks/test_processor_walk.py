"""Random walks of the whole worker on fakes: records, hops, forks, aborts, crashes, against a stateless oracle."""

import itertools
import random
from dataclasses import replace

import pytest
from oracle import expected_answers
from world import CONTEXT, KEEP, QUERIES, World, in_log_order, make_config, random_record

from streamproc.messages import Ask, Query
from streamproc.records import Trade


@pytest.mark.parametrize("seed", range(60))
def test_answers_equal_the_oracle_whatever_the_batching_hops_aborts_and_crashes(seed: int) -> None:
    rng = random.Random(seed)
    config = make_config(step_tokens=rng.choice((16, 48, 400)), backlog_tokens=rng.choice((40, 1_000)))
    world = World(rng, config, 2, num_blocks=rng.choice((72, 90, 400)), looks_back=seed % 2 == 1)
    for query in QUERIES:
        world.register(query)
    symbols = [f"S{i}" for i in range(rng.choice((1, 3, 12)))]
    for _ in range(rng.randrange(50, 400)):
        sym = rng.choice(symbols)
        for _ in range(rng.choice((0, 1, 1, 5))):
            world.log.produce(symbols.index(sym) % 2, random_record(rng, sym))
        world.fate = rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
        world.step()
        if rng.random() < 0.01:
            world.crash()
    world.drain()
    expected = []
    for number in range(2):
        messages = world.log.read(config.topics.records, number)
        expected += expected_answers(world.renderer, messages, QUERIES, CONTEXT, KEEP)
    expected.sort(key=lambda e: (e.offset, e.query_id, e.session))
    found = sorted(in_log_order(world.answers()), key=lambda e: (e.offset, e.query_id, e.session))
    assert found == expected
    ids = [answer.id for answer in world.answers()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("seed", range(20))
def test_every_ask_is_answered_once_and_has_seen_its_offset(seed: int) -> None:
    rng = random.Random(seed)
    config = make_config(step_tokens=rng.choice((8, 64)))
    world = World(rng, config, num_partitions=1, num_blocks=200)
    asks: dict[str, int] = {}
    for turn in range(150):
        offset = world.log.produce(0, random_record(rng, rng.choice(("A", "B"))))
        if turn > 5 and rng.random() < 0.3:
            ask = Ask(
                f"ask-{turn}", rng.choice(("A", "B")), "how?", min_offset=offset + rng.choice((0, 0, 4)), max_tokens=4
            )
            asks[ask.id] = ask.min_offset or 0
            world.log.append(config.topics.asks, 0, ask.session.encode(), ask.encode())
        world.fate = rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
        world.step()
        if rng.random() < 0.03:
            world.crash()
    for _ in range(5):
        for sym in "AB":
            world.log.produce(0, random_record(rng, sym))
    world.drain()
    replies = [answer for answer in world.answers() if answer.kind == "ask"]
    assert sorted(a.id for a in replies) == sorted(asks)
    messages = world.log.read(config.topics.records, 0)
    for reply in replies:
        assert reply.as_of is not None
        unseen = [
            m for m in messages if reply.as_of.offset < m.offset <= asks[reply.id] and m.key == reply.session.encode()
        ]
        assert not unseen


@pytest.mark.parametrize("seed", range(15))
def test_idle_queries_reach_the_newest_record_and_never_answer_an_offset_twice(seed: int) -> None:
    rng = random.Random(seed)
    config = make_config()
    world = World(rng, config, num_partitions=1, num_blocks=200)
    world.register(Query("idle", "now {last}?", "*", max_tokens=4))
    world.register(Query("news", "now?", "*", emit="change", max_tokens=1))
    for _ in range(120):
        if rng.random() < 0.6:
            world.log.produce(0, random_record(rng, rng.choice(("A", "B", "C"))))
        world.fate = rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
        world.step()
        if rng.random() < 0.04:
            world.crash()
    world.drain()
    answers = world.answers()
    assert len({answer.id for answer in answers}) == len(answers)
    newest = {m.key: m.offset for m in world.log.read(config.topics.records, 0)}
    for sym, offset in newest.items():
        assert any(
            a.query_id == "idle" and a.as_of and a.as_of.offset == offset for a in answers if a.session == sym.decode()
        )
    for sym in newest:
        texts = [a.text for a in answers if a.query_id == "news" and a.session == sym.decode()]
        assert all(a != b for a, b in itertools.pairwise(texts))


def test_a_removed_query_is_not_answered_again_and_a_new_version_answers_under_its_own() -> None:
    world = World(random.Random(1), make_config(), num_partitions=1, num_blocks=200)
    first = Query("q", "one?", every=1, max_tokens=2)
    world.register(first)
    for _ in range(4):
        world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    second = replace(first, question="two?")
    world.register(second)
    world.drain()
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    world.log.append(world.config.topics.control, 0, b"q", None)
    world.drain()
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    assert [a.query_version for a in world.answers()] == [first.version] * 4 + [second.version]


def test_bad_input_goes_to_the_dead_topic_once_with_its_bytes_and_the_worker_goes_on() -> None:
    world = World(random.Random(1), make_config(), num_partitions=1, num_blocks=200)
    topics = world.config.topics
    world.register(Query("q", "ok?", every=1, max_tokens=2))
    world.log.append(topics.control, 0, b"bad", b'{"question": ""}')
    world.log.append(topics.records, 0, b"A", b"{not json")
    world.log.append(topics.asks, 0, b"A", b'{"id": 7}')
    world.log.produce(0, random_record(world.rng, "A"))
    world.log.append(topics.records, 0, b"WRONG", world.log.read(topics.records)[-1].value)
    ask = Ask("unknown", "NOBODY", "who?", max_tokens=2)
    world.log.append(topics.asks, 0, b"NOBODY", ask.encode())
    world.drain()
    world.crash()
    world.drain()
    letters = [
        (headers["topic"], headers["offset"], headers["code"], message.value)
        for message, headers in world.log.headers
        if message.topic == topics.dead
    ]
    assert sorted(letters) == sorted(
        [
            (topics.records.encode(), b"0", b"BAD_RECORD", b"{not json"),
            (topics.records.encode(), b"2", b"BAD_RECORD", world.log.read(topics.records)[2].value),
            (topics.asks.encode(), b"0", b"BAD_ASK", b'{"id": 7}'),
            (topics.control.encode(), b"1", b"BAD_QUERY", b'{"question": ""}'),
        ]
    )
    replies = [answer for answer in world.answers() if answer.kind == "ask"]
    assert len(replies) == 1
    assert replies[0].error is not None
    assert "NOBODY" in replies[0].error
    assert sum(answer.kind == "flash" for answer in world.answers()) == 1


@pytest.mark.parametrize("looks_back", [False, True])
def test_a_session_whose_only_record_was_refused_does_not_exist(looks_back: bool) -> None:
    config = replace(make_config(), engine=replace(make_config().engine, context_tokens=32))
    world = World(random.Random(1), config, num_partitions=1, num_blocks=200)
    world.renderer.prefix_ids = tuple(range(12))
    world.renderer.looks_back = looks_back
    world.crash()
    world.log.produce(0, Trade("A", 1, "1", "2"))
    world.log.produce(0, Trade("LONG", 1_234_567_890, "123456.789", "1234"))
    for number, session in enumerate(("LONG", "A")):
        ask = Ask(f"ask-{number}", session, "how?", min_offset=1, max_tokens=2)
        world.log.append(config.topics.asks, 0, session.encode(), ask.encode())
    world.drain()
    world.crash()
    world.drain()
    replies = {answer.id: answer for answer in world.answers()}
    assert "unknown session 'LONG'" in (replies["ask-0"].error or "")
    assert replies["ask-1"].error is None
    assert len(world.log.read(config.topics.dead)) == 1


def test_a_session_whose_records_were_rolled_back_is_unknown_until_they_come_again() -> None:
    world = World(random.Random(1), make_config(), num_partitions=1, num_blocks=200)
    offset = world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    world.processor.partitions[0].sessions["A"].truncate(offset)
    ask = Ask("ask", "A", "how?", max_tokens=2)
    world.log.append(world.config.topics.asks, 0, b"A", ask.encode())
    for _ in range(5):
        world.step()
    world.drain()
    assert [a.error and "unknown session 'A'" in a.error for a in world.answers()] == [True]


def test_a_flood_of_waiting_asks_is_refused_instead_of_outgrowing_the_offsets_metadata() -> None:
    world = World(random.Random(1), make_config(), num_partitions=1, num_blocks=200)
    world.rebalance_share = 0
    world.log.produce(0, random_record(world.rng, "A"))
    for number in range(600):
        ask = Ask(f"ask-{number}", "A", "how?", min_offset=1 + number % 2 * 10**6, max_tokens=1)
        world.log.append(world.config.topics.asks, 0, b"A", ask.encode())
    for _ in range(700):
        world.step()
    refused = [answer for answer in world.answers() if answer.error and "too many asks" in answer.error]
    assert len(refused) >= 600 - 256
    _, metadata = world.log.committed[(world.config.topics.asks, 0)]
    assert len(metadata) < 4_096
