"""The small parts of the state: blocks, ask logs, facts, sessions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import BadRecord
from streamproc.records import Bar, Quote, Trade
from streamproc.state.asklog import AskLog, answered_to
from streamproc.state.blocks import ROOT, BlockPool, name_of
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


@pytest.mark.parametrize("metadata", ["answered +1-99999999999", "answered" + " +0-99999999999" * 200])
def test_metadata_that_names_any_number_of_asks_takes_no_memory(metadata):
    log = AskLog(5, metadata)
    assert answered_to(5, metadata) == 5 + 99_999_999_999 + 1
    assert not log.see(6)
    assert len(log.position()[1]) < 40


@pytest.mark.parametrize("metadata", ["answered +" + "9" * 3_000, "answered +\u0663", "answered +9-1"])
def test_ranges_that_are_none_answer_nothing(metadata):
    assert answered_to(5, metadata) == 5
    assert AskLog(5, metadata).see(8)


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


def named(pool, ids, before=ROOT):
    """A held block with this content."""
    (block_id,) = pool.allocate(1)
    name = name_of(before, ids)
    assert pool.name(block_id, name)
    return block_id, name


def test_a_named_block_is_found_while_it_is_held_and_after_until_its_cells_are_needed():
    pool = BlockPool(3, 4)
    block_id, name = named(pool, (1, 2, 3, 4))
    pool.take(pool.look_up(name))
    pool.release([block_id])
    pool.release([block_id])
    assert pool.num_free == 3
    pool.take(pool.look_up(name))
    pool.check([[block_id]])
    pool.release([block_id])
    table = pool.allocate(2)
    assert pool.look_up(name) == block_id  # blank ones go first
    assert pool.allocate(1) == [block_id]
    assert pool.look_up(name) is None
    pool.check([table, [block_id]])


def test_the_one_that_has_been_free_for_longest_loses_its_content_first_and_heads_after_tails():
    pool = BlockPool(3, 4)
    head, head_name = named(pool, (1, 2, 3, 4))
    tail, tail_name = named(pool, (5, 6, 7, 8), head_name)
    old, old_name = named(pool, (9, 9, 9, 9))
    pool.release([old])
    pool.release([head, tail])
    assert pool.allocate(1) == [old]
    assert pool.allocate(1) == [tail]
    assert (pool.look_up(old_name), pool.look_up(tail_name), pool.look_up(head_name)) == (None, None, head)


def test_the_same_tokens_after_others_are_another_block():
    names = {name_of(before, ids) for before in (ROOT, name_of(ROOT, (1, 2))) for ids in ((1, 2), (2, 1), (1, 3))}
    assert len(names) == 6


def test_what_was_not_computed_after_all_is_not_found():
    pool = BlockPool(2, 4)
    held, name = named(pool, (1, 2, 3, 4))
    freed, other = named(pool, (4, 3, 2, 1))
    pool.release([freed])
    pool.unname([held, freed])
    assert pool.look_up(name) is pool.look_up(other) is None
    pool.check([[held]])


def test_how_many_must_let_go_counts_blocks_that_several_share():
    pool = BlockPool(4, 4)
    table = pool.allocate(3)
    pool.share(table[:2])
    tables = [table, table[:2]]
    assert (pool.num_enough(1, tables), pool.num_enough(2, tables), pool.num_enough(3, tables)) == (0, 1, 2)
    assert pool.num_enough(5, tables) is None
    assert pool.most(tables) == 4


def test_the_next_generation_is_the_same_whether_it_was_made_ahead_or_lost_on_the_way():
    def walk(loses):
        session, new_id = make_session(context_tokens=80, keep_tokens=40)
        contexts = []
        for offset in range(60):
            session.append(offset, Trade("A", 1, "1", "1"), (offset,) * (1 + offset % 5), new_id)
            if loses(offset):
                session.next = None
            contexts.append(list(session.current.token_ids))
        return contexts

    assert walk(lambda offset: False) == walk(lambda offset: True) == walk(lambda offset: offset % 3 == 0)


def test_what_a_session_hops_to_has_been_there_before_the_hop():
    session, new_id = make_session(context_tokens=80, keep_tokens=40)
    ahead, hops = None, 0
    for offset in range(100):
        if session.append(offset, Trade("A", 1, "1", "1"), (offset,) * 4, new_id):
            hops += 1
            assert session.current is ahead
        ahead = session.next
    assert hops > 3
    assert not session.unused


def test_a_truncated_generation_gives_up_the_block_in_which_tokens_are_gone_if_others_may_rely_on_it():
    pool = BlockPool(4, 4)
    session, new_id = make_session(context_tokens=40)
    for offset in range(3):
        session.append(offset, Trade("A", 1, "1", "1"), (offset,) * 3, new_id)
    generation = session.current
    generation.block_table = pool.allocate(3)
    generation.advance(11)
    for index in range(2):
        pool.name(generation.block_table[index], generation.name(index, 4))
    session.truncate(1)
    assert generation.num_tokens == 5
    pool.release(generation.trim_blocks(pool))
    assert (len(generation.block_table), generation.num_computed) == (1, 4)
    pool.check([generation.block_table])


def test_what_is_spent_is_the_first_to_go_and_is_told_from_the_rest():
    pool, forgotten = BlockPool(3, 4), []
    pool.on_forget = lambda block_id, name, is_spent: forgotten.append((name, is_spent))
    (kept, kept_name), (spent, spent_name), (again, again_name) = (named(pool, (i,) * 4) for i in range(3))
    pool.release([kept])
    pool.spend([spent, kept])   # one that is held is not spent
    pool.release([spent])
    pool.release([again])
    pool.spend([spent, again])
    pool.take(again)            # somebody needs it after all
    pool.release([again])
    assert pool.look_up(spent_name) == spent
    pool.take(kept)
    pool.release([kept])
    pool.check([])
    assert pool.allocate(3)
    assert forgotten == [(spent_name, True), (again_name, False), (kept_name, False)]
    pool.check([[kept], [spent], [again]])
