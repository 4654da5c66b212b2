"""Offsets, metadata and heads that somebody else has written: told, and never taken for what they are not."""

from collections.abc import Callable

import pytest
from gap_site import TRIGGERED, commit_by_hand, one_partition, refusal, with_policy, work
from workers import Site, ThreadWorker, until

from streamproc.config import Topics
from streamproc.messages import Ask, Query, decode_head
from streamproc.records import Trade
from streamproc.state.publish import head_key

pytestmark = pytest.mark.broker


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    return one_partition(bootstrap_servers, make_topics)


def one_session(start: int, count: int) -> list[Trade]:
    return [Trade("A", 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", "1") for i in range(start, start + count)]


@pytest.mark.parametrize("how_far", ["nothing", "before the generation", "within the generation"])
def test_a_group_that_is_set_back_is_told_and_answers_again_as_it_did(how_far: str, site: Site) -> None:
    """Sessions' heads lie ahead of the committed offset then: what they say was not so at that offset."""
    topic = site.config.topics.records
    site.send_records(one_session(0, 60))
    with ThreadWorker(site.config):
        site.settle()
    first = site.answers()
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)
    head = decode_head(site.read(site.config.topics.sessions)[-1].value or b"")
    assert 40 < head.start_offset < head.born_at
    to = {"nothing": 0, "before the generation": 40, "within the generation": head.born_at}[how_far]
    commit_by_hand(site, topic, to)
    line = refusal(site)
    assert f"{topic} partition 0: offset {to} is committed, but 1 sessions' heads know of later records" in line
    assert f"that of 'A' of {head.born_at}: somebody has set group {site.config.worker.group} back" in line
    with ThreadWorker(with_policy(site.config, "rebuild")) as worker:
        site.settle()
    assert len(worker.warnings) == 1
    due = [answer for answer in first if answer.as_of and answer.as_of.offset >= to]
    assert site.answers() == [*first, *due]  # ids and texts too
    site.send_records(one_session(60, 40))
    with ThreadWorker(site.config) as worker:
        site.settle()
    assert worker.warnings == []
    expected = site.expected(TRIGGERED)
    assert [answer.as_of.offset for answer in site.answers()[len(first) + len(due) :] if answer.as_of] == [
        item.offset for item in expected if item.offset >= 60
    ]
    assert [item for item in site.triggered(TRIGGERED) if item.offset >= 60] == expected[30:]


def test_after_a_set_back_the_first_epoch_makes_the_heads_fit_again(site: Site) -> None:
    """One session whose generation is known still, but not its marks; one that begins behind the offset."""
    change = Query("change", "Is {count}?", every=1, emit="change", max_tokens=5)
    site.register([change])
    site.send_records([*one_session(0, 6), Trade("B", 2_000, "9.5", "1")])
    with ThreadWorker(site.config):
        site.settle()
    topic, first = site.config.topics.records, site.answers()
    commit_by_hand(site, topic, 4)
    line = refusal(site)
    assert "2 sessions' heads know of later records, that of 'B' of 6" in line
    with ThreadWorker(with_policy(site.config, "rebuild")) as worker:
        site.settle()
    assert len(worker.warnings) == 1
    again = [answer for answer in first if answer.as_of and answer.as_of.offset >= 4]
    order = [(answer.id, answer.text) for answer in site.answers()[len(first) :]]
    assert sorted(order) == sorted((answer.id, answer.text) for answer in again)
    with ThreadWorker(site.config) as worker:
        until(lambda: worker.owned, "its partition")
    assert worker.warnings == []


BAD_HEADS = [
    b"garbage",
    b'{"session":"A","start_offset":"x","records_before":0,"marks":{}}',
    b'{"session":"A","start_offset":-5,"records_before":-9,"marks":{}}',
    b'{"session":"A","start_offset":0,"records_before":0,"marks":{"n":{"version":1,"offset":"x","digest":2}}}',
    b'{"session":"Z","start_offset":999999,"records_before":0,"marks":{}}',
]


@pytest.mark.parametrize("value", BAD_HEADS, ids=range(len(BAD_HEADS)))
def test_a_head_that_nobody_can_read_is_told_passed_over_and_written_anew(value: bytes, site: Site) -> None:
    work(site, 0, 60)
    topics, key = site.config.topics, head_key(site.config.worker.group, site.config.topics.records, "A")
    where = site.send(topics.sessions, key, value, 0)
    (line,) = work(site, 60, 20)
    assert f"{topics.sessions} partition 0 offset {where.offset}, key {key.decode()!r}: not a session head" in line
    assert "\n" not in line
    assert work(site, 80, 20) == []
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)


def test_metadata_of_asks_that_names_more_than_the_log_holds_says_nothing(site: Site) -> None:
    work(site, 0, 10)
    commit_by_hand(site, site.config.topics.asks, 0, "answered +1-99999999999")
    with ThreadWorker(site.config):
        for name in ("one", "two", "three"):
            site.ask(Ask(name, "A", "how?", max_tokens=3))
        until(lambda: len(site.replies()) == 3, "the replies")
