"""The small parts of the state: blocks, ask logs, facts, sessions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import BadRecord
from streamproc.records import Bar, Quote, Trade
from streamproc.state.asklog import AskLog
from streamproc.state.blocks import BlockPool
from streamproc.state.facts import Facts
from streamproc.state.session import Session, Shape


def test_a_block_is_free_again_when_its_last_holder_lets_go():
    pool = BlockPool(4, 16)
    table = pool.allocate(3)
    assert table is not None
    pool.share(table[:2])
    pool.release(table)
    assert pool.num_free == 2
    pool.check([table[:2]])
    pool.release(table[:2])
    pool.check([])


def test_a_pool_gives_all_or_nothing():
    pool = BlockPool(2, 16)
    assert pool.allocate(3) is None
    assert pool.num_free == 2


def test_a_leak_is_seen_by_the_check():
    pool = BlockPool(2, 16)
    pool.allocate(1)
    with pytest.raises(AssertionError):
        pool.check([])


@given(st.permutations(range(12)), st.integers(0, 11))
def test_an_ask_log_survives_a_restart_at_any_point(order, restart_at):
    log = AskLog(0)
    assert all(log.see(offset) for offset in range(12))
    for offset in order[:restart_at]:
        log.close(offset)
    position, metadata = log.position()
    again = AskLog(position, metadata)
    assert [offset for offset in range(position, 12) if again.see(offset)] == sorted(order[restart_at:])
    for offset in order[restart_at:]:
        again.close(offset)
    assert again.position() == (12, "")


def test_metadata_of_somebody_else_means_nothing():
    assert AskLog(5, "written by another tool").see(6)


def test_facts_follow_the_records_and_keep_their_text():
    facts = Facts()
    for record in (Trade("A", 1, "10.50", "2"), Trade("A", 2, "9.75", "2"), Quote("A", 3, "9.70", "9.80")):
        facts.update(record)
    facts.update(Bar("A", 4, "9", "12.0", "8.5", "11", "0"))
    text = facts.render("{session} {count} {last} {high} {low} {vwap} {volume} {bid} {ask} {mid} {spread}", "A", 4)
    assert text == "A 4 11 12.0 8.5 10.12 4 9.70 9.80 9.750 0.10"


def test_what_is_not_known_yet_says_so():
    assert Facts().render("{last} of {session}", "A", 0) == "unknown of A"


def make_session(context_tokens=20, keep_tokens=10):
    ids = iter(range(1, 100))
    return Session("A", Shape((1, 2), context_tokens, keep_tokens), 0, 0, next(ids)), lambda: next(ids)


def test_a_full_generation_hops_to_the_newest_whole_records_that_fit():
    session, new_id = make_session()
    hops = [session.append(offset, Trade("A", 1, "1", "1"), (offset,) * 4, new_id) for offset in range(5)]
    assert hops == [False, False, False, False, True]
    assert session.current.token_ids == [1, 2, *(2,) * 4, *(3,) * 4, *(4,) * 4]
    assert session.current.start_offset == 2
    assert session.current.records_before == 2
    assert session.current.num_records == 5


def test_truncation_goes_back_across_a_hop():
    session, new_id = make_session()
    for offset in range(5):
        session.append(offset, Trade("A", 1, "1", "1"), (offset,) * 4, new_id)
    young = session.current
    assert session.truncate(4) == [young]
    assert [entry.offset for entry in session.current.entries] == [0, 1, 2, 3]
    assert not session.retired


def test_a_record_that_can_never_fit_is_refused_and_changes_nothing():
    session, new_id = make_session()
    with pytest.raises(BadRecord, match="18"):
        session.append(0, Trade("A", 1, "1", "1"), (7,) * 19, new_id)
    assert session.current.token_ids == [1, 2]
