"""How sequences share a step, what is computed once for several of them, and what is guessed."""

import random

import pytest
from planning import Planning

from streamproc.messages import Ask, Query
from streamproc.schedule.builder import FEWEST, StepBuilder, share
from streamproc.schedule.plan import Plan
from streamproc.schedule.steptime import Load, StepTimes
from streamproc.state.blocks import ROOT, name_of
from streamproc.state.fork import NOWHERE, Fork, Question
from streamproc.state.generation import Generation
from streamproc.state.session import Session, Shape
from streamproc.state.turns import Turns, Verdict

PREFIX = tuple(range(1, 41))
QUERY = Query("q", "how?", max_tokens=6, stop=())


def taken(room: int, needs: list[int]) -> list[int]:
    """What each of these needs gets, one after another."""
    found = []
    for place, need in enumerate(needs):
        found.append(min(need, share(room, len(needs) - place)) if room else 0)
        room -= found[-1]
    return found


@pytest.mark.parametrize(
    ("room", "needs", "expected"),
    [
        (512, [1000], [512]),
        (512, [1000, 1000, 1000, 1000], [128] * 4),
        (512, [10, 10, 1000, 1000], [10, 10, 246, 246]),
        (512, [10] * 60, [10] * 51 + [2] + [0] * 8),
        (20, [1000, 1000], [20, 0]),
        (64, [1000] * 4, [FEWEST, FEWEST, 0, 0]),
    ],
)
def test_no_long_sequence_keeps_the_others_waiting_and_nothing_is_left_unused(
    room: int, needs: list[int], expected: list[int]
):
    assert taken(room, needs) == expected


def planning(num_blocks: int = 2_000, step_tokens: int = 200, context: int = 400) -> Planning:
    return Planning(num_blocks, 4, step_tokens, Shape(PREFIX, context, context // 2))


def ids_of(rng: random.Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(100) for _ in range(num_tokens))


def test_the_system_prefix_is_computed_once_for_all_sessions() -> None:
    world, rng = planning(), random.Random(1)
    for _ in range(10):
        world.record(world.session(), ids_of(rng, 8))
    world.drain()
    assert world.num_tokens == len(PREFIX) + 10 * 8
    world.workload.check()


def test_the_common_head_of_questions_is_computed_once_whole_blocks_of_it() -> None:
    world, rng = planning(), random.Random(1)
    session = world.session()
    world.record(session, ids_of(rng, 9))
    world.drain()
    before, head = world.num_tokens, ids_of(rng, 20)
    for i in range(5):
        world.ask(session, Query(f"q{i}", f"{i}", max_tokens=1, stop=()), (*head, i, i + 1))
    world.step()
    base = session.current.num_tokens
    common = (base + len(head)) // 4 * 4 - base
    assert world.num_tokens - before == 22 + 4 * (22 - common)
    assert len(world.waits) == 5
    world.workload.check()


def test_a_prompt_that_was_sent_before_is_not_computed_again() -> None:
    world, rng = planning(), random.Random(1)
    prompt = ids_of(rng, 50)
    world.call(prompt, 1)
    world.drain()
    before = world.num_tokens
    world.call((*prompt, 7), 1)
    world.drain()
    assert world.num_tokens - before == 51 - 48


def test_cells_in_use_are_those_needed_and_less_than_a_block_a_sequence() -> None:
    world, rng = planning(context=4_000), random.Random(3)
    for num_tokens in (1, 17, 300, 44):
        world.record(world.session(), ids_of(rng, num_tokens))
    world.drain()
    for session in world.sessions:
        world.ask(session, QUERY, ids_of(rng, 9))
    world.step()
    used = (world.pool.num_blocks - world.pool.num_free) * 4
    own = sum(s.current.num_tokens - len(PREFIX) for s in world.sessions) + sum(
        fork.max_cells - fork.base for fork in world.workload.running.values()
    )
    needed = len(PREFIX) + own
    sequences = len(world.sessions) + len(world.workload.running)
    copied = sum(fork.base % 4 for fork in world.workload.running.values())
    assert needed <= used <= needed + copied + 3 * sequences


def test_a_new_record_does_not_wait_for_flash_queries() -> None:
    world, rng = planning(step_tokens=64), random.Random(2)
    session, other = world.session(), world.session()
    world.record(session, ids_of(rng, 100))
    world.drain()
    for i in range(50):
        world.ask(session, Query(f"q{i}", f"{i}", max_tokens=6, stop=()), ids_of(rng, 30))
    world.step()
    world.record(other, ids_of(rng, 10))
    plan = world.step()
    assert other.current.seq_id in {chunk.seq_id for chunk in plan.chunks}
    assert other.current.num_computed == other.current.num_tokens


def test_one_hot_session_holds_none_of_63_quiet_ones_up() -> None:
    """The hot one is always behind and always has questions; the others have a record and a question now and then."""
    world, rng = planning(num_blocks=20_000, step_tokens=256, context=2_000), random.Random(4)
    hot, *quiet = [world.session() for _ in range(64)]
    asked: list[Fork] = []
    for turn in range(600):
        while world.workload.num_behind < 3_000:
            world.record(hot, ids_of(rng, 30))
            world.ask(hot, Query("hot", "hot?", max_tokens=3, stop=()), ids_of(rng, 9))
        session = quiet[turn % 63]
        world.record(session, ids_of(rng, 10))
        asked.append(world.ask(session, QUERY, ids_of(rng, 9)))
        world.step()
        world.settle()
    waits = [world.waits.get(fork.seq_id, 1_000) for fork in asked[:-20]]
    hot_waits = [wait for seq_id, wait in world.waits.items() if seq_id not in {fork.seq_id for fork in asked}]
    assert max(waits) <= 12
    assert len(hot_waits) > 200


def test_an_ask_to_a_session_that_is_far_behind_leaves_the_others_their_share() -> None:
    world, rng = planning(step_tokens=100, context=20_000, num_blocks=8_000), random.Random(5)
    hot, quiet = world.session(), world.session()
    world.record(hot, ids_of(rng, 10_000))
    world.ask(hot, Ask("a", "S0", "how?", max_tokens=2, stop=()), ids_of(rng, 5))
    world.record(quiet, ids_of(rng, 50))
    for _ in range(4):
        world.step()
    assert quiet.current.num_computed == quiet.current.num_tokens


def test_a_hop_costs_an_ask_nothing_where_there_was_time_before_it() -> None:
    def plans_of_an_ask(hops: bool) -> int:
        world, rng = planning(context=400), random.Random(6)
        session = world.session()
        while session.current.num_tokens + 10 <= 400 - 10 * (not hops):
            world.record(session, ids_of(rng, 10))
            world.drain()
            world.step()
            world.step()
        world.record(session, ids_of(rng, 10))
        assert bool(session.retired) is hops
        fork = world.ask(session, Ask("a", "S0", "how?", max_tokens=1, stop=()), ids_of(rng, 5))
        before = world.num_tokens
        world.drain()
        assert world.num_tokens - before < 40
        return world.waits[fork.seq_id]

    assert plans_of_an_ask(hops=True) == plans_of_an_ask(hops=False)


def test_what_is_made_ahead_takes_no_cells_that_somebody_needs() -> None:
    world, rng = planning(num_blocks=110, context=400), random.Random(6)
    session = world.session()
    for _ in range(36):
        world.record(session, ids_of(rng, 10))
    world.drain()
    world.step()
    assert session.next
    ahead = session.next.num_computed
    world.call(ids_of(rng, 30), 4)
    world.drain()
    assert ahead > session.next.num_computed == 0 or world.pool.num_free
    world.workload.check()


def decoded(world: Planning, session: Session, query: Query, tail: tuple[int, ...]) -> int:
    """Plans of one answer."""
    fork = world.ask(session, query, tail)
    world.drain()
    return world.waits[fork.seq_id]


def test_an_answer_that_still_holds_takes_one_step() -> None:
    world, rng = planning(), random.Random(7)
    world.seconds_of = lambda plan: 5e-3 + 1e-4 * plan.num_tokens     # type: ignore[method-assign]
    session, tail = world.session(), ids_of(rng, 9)
    world.record(session, ids_of(rng, 20))
    world.drain()
    assert decoded(world, session, QUERY, tail) == 6
    assert decoded(world, session, QUERY, tail) == 1
    world.record(session, ids_of(rng, 20))
    world.drain()
    assert decoded(world, session, QUERY, tail) > 1     # the fake model never says the same twice


def test_guesses_that_never_hold_are_given_up_where_many_share_a_step() -> None:
    world, rng = planning(num_blocks=20_000, step_tokens=2_000), random.Random(8)
    world.seconds_of = lambda plan: 5e-2 + 1e-4 * plan.num_tokens     # type: ignore[method-assign]
    sessions = [world.session() for _ in range(32)]
    guessed = []
    for _ in range(40):
        for session in sessions:
            world.record(session, ids_of(rng, 3))
            world.ask(session, QUERY, (5, 6, 7))
        before = world.num_tokens
        world.drain()
        guessed.append(world.num_tokens - before - 32 * (3 + 3 + 5))
    assert 0 <= guessed[-1] < guessed[1] / 4


def load_of(*parts: tuple[int, int, int]) -> Load:
    load = Load()
    for part in parts:
        load.add(*part)
    return load


def test_how_long_a_step_takes_is_learned() -> None:
    times, rng = StepTimes(), random.Random(9)
    cost = (5e-3, 4e-5, 2e-6, 1e-5, 3e-5)
    assert not times.is_known

    def seconds(load: Load) -> float:
        values = (1.0, load.rows, load.pairs, load.reads, load.samples)
        return sum(a * b for a, b in zip(cost, values, strict=True))

    def learned(load: Load) -> float:
        return times.fixed + times.seconds((load.rows, load.pairs, load.reads, load.samples))

    for _ in range(200):
        sizes = [rng.choice((1, 1, 20, 300)) for _ in range(rng.randrange(1, 9))]
        load = load_of(*((rng.randrange(8_000), size, 1) for size in sizes))
        times.observe(load, seconds(load) * rng.uniform(0.9, 1.1))
    for load in (load_of((0, 512, 1)), load_of((4_000, 1, 1)), load_of((8_000, 200, 0))):
        assert learned(load) == pytest.approx(seconds(load), rel=0.15)
    most = times.most_tokens(0.05, 4_000)
    assert learned(load_of((4_000, most, 0))) - times.fixed == pytest.approx(0.05, rel=0.02)


def test_a_step_takes_as_much_as_fits_its_time() -> None:
    world, rng = planning(step_tokens=1_000, context=20_000, num_blocks=10_000), random.Random(10)
    world.scheduler.step_s = 0.1
    world.seconds_of = lambda plan: 2e-3 + 1e-3 * plan.num_tokens     # type: ignore[method-assign]
    world.record(world.session(), ids_of(rng, 6_000))
    plans: list[Plan] = [world.step() for _ in range(30)]
    assert {plan.num_tokens for plan in plans[15:]} <= set(range(85, 110))


def test_where_memory_ran_out_flash_queries_start_over_and_all_is_answered_right() -> None:
    world, rng = planning(), random.Random(11)
    session = world.session()
    for _ in range(5):
        world.record(session, ids_of(rng, 21))  # copies of partly filled blocks are lost too
        world.ask(session, QUERY, ids_of(rng, 9))
        world.ask(session, Ask("a", "S0", "how?", max_tokens=4, stop=()), ids_of(rng, 9))
        world.step()
        world.record(world.session(), ids_of(rng, 30))
        world.scheduler.retreat([world.begin()])
        world.workload.check()
        assert all(fork.question.is_awaited for fork in world.workload.running.values())
    world.drain()
    assert len(world.waits) == 10
    assert world.scheduler.step_tokens < 200


def test_what_is_let_go_of_while_it_is_computed_is_passed_over() -> None:
    world, rng = planning(), random.Random(12)
    for _ in range(2):
        world.record(world.session(), ids_of(rng, 20))
    fork = world.call(ids_of(rng, 30), 4)
    plan = world.launch(world.begin())
    gone, kept = (session.current for session in world.sessions)
    world.workload.drop(gone)
    world.workload.drop_forks(lambda other: other is fork)
    world.land()
    assert plan.num_tokens
    assert 0 < kept.num_computed < kept.num_tokens
    world.drain()
    world.workload.check()


@pytest.mark.parametrize("num_blocks", [36, 44, 56, 72])
def test_a_question_gets_its_cells_while_records_never_stop(num_blocks: int) -> None:
    world = Planning(num_blocks, 4, 200, Shape(PREFIX[:4], 80, 60))
    sessions = [world.session() for _ in range(3)]

    def step() -> None:
        for session in sessions:
            world.record(session, (world.offset % 90, world.offset % 7))
        world.settle()
        world.step()

    for _ in range(60):
        step()
    forks = [world.call(tuple(i % 100 for i in range(140)), 4)]
    forks.append(world.ask(sessions[1], Ask("a", "S1", "how?", max_tokens=4, stop=()), (1, 2, 3)))
    forks.append(world.ask(sessions[2], QUERY, (1, 2, 3)))
    for _ in range(60):
        step()
    assert all(world.waits[fork.seq_id] < 40 for fork in forks)


def test_what_a_session_has_had_is_not_given_back_to_it() -> None:
    turns, got = Turns(), {"A": 0, "B": 0}

    def wait(session: str, num_tokens: int) -> None:
        question = Question(QUERY, session, "how?", (1,) * (num_tokens - 6), 6, (), NOWHERE)
        turns.add(Fork(len(turns), question, None, Generation(0, (), 0, 0), 0, 0.0))

    wait("A", 1_000)
    for _ in range(4_000):
        wait("A", 20)
        wait("B", 20)
    for step in range(200):
        room = [64 if step == 0 else 20]

        def start(fork: Fork, room: list[int] = room) -> Verdict:
            if room[0] <= 0:
                return Verdict.FULL
            room[0] = 0 if fork.num_own_tokens == 1_000 else room[0] - 1
            got[fork.question.session] += fork.num_own_tokens
            return Verdict.STARTED

        turns.offer(start)
    assert abs(got["A"] - got["B"]) < 1_100


def test_after_memory_ran_out_a_step_grows_back_to_what_the_settings_say() -> None:
    world, rng = planning(), random.Random(13)
    session = world.session()
    world.record(session, ids_of(rng, 20))
    world.drain()
    for _ in range(9):
        world.ask(session, QUERY, ids_of(rng, 5))
        world.scheduler.retreat([world.begin()])
    assert world.scheduler.step_tokens == FEWEST
    world.drain()
    for _ in range(500):
        world.record(session, ids_of(rng, 2))
        world.drain()
    assert world.scheduler.step_tokens == 200


def test_what_was_not_seen_for_long_is_not_guessed() -> None:
    times, rng = StepTimes(), random.Random(14)
    for i in range(26_000):
        load = load_of((rng.randrange(500), rng.randrange(1, 60), int(i < 50)))
        times.observe(load, 1e-3 + 1e-5 * load.rows)
    assert times.per_draft_token(100) < 1e-3


def test_blocks_of_two_that_know_nothing_of_each_other_are_not_both_taken() -> None:
    """A sequence can come after one other of its plan, and after what that one comes after."""
    world = planning()
    first, second = world.pool.allocate(2)
    ids = (1, 2, 3, 4, 5, 6, 7, 8)
    names = [name_of(ROOT, ids[:4])]
    names.append(name_of(names[0], ids[4:]))
    draft = StepBuilder(world.scheduler.times, 100, 1.0)
    for block_id, name, writer in zip((first, second), names, (71, 72), strict=True):
        world.pool.name(block_id, name)
        draft.writers[block_id] = writer
    reader = Generation(73, (*ids, 9), 0, 0)
    world.scheduler.cells.reuse(draft, reader)
    assert (reader.block_table, draft.after) == ([first], {73: 71})
    draft.after[72] = 71
    other = Generation(74, (*ids, 9), 0, 0)
    world.scheduler.cells.reuse(draft, other)
    assert (other.block_table, draft.after[74]) == ([first, second], 72)


@pytest.mark.parametrize("step_tokens", [64, 128])
def test_records_and_asks_come_before_answers_that_go_on_in_a_step_decided_ahead(step_tokens: int) -> None:
    world = planning(20_000, step_tokens, 4_000)
    world.scheduler.speculation.is_on = False
    sessions = [world.session() for _ in range(21)]
    for session in sessions:
        world.record(session, (1, 2, 3))
    for _ in range(12):
        world.step_ahead()
    for i in range(1_000):
        world.ask(sessions[i % 20], Query("q", "q", max_tokens=100, stop=()), (7, 8, 9))
    for _ in range(25):
        world.step_ahead()
    world.record(sessions[20], tuple(range(20)))
    ask = world.ask(sessions[20], Ask("a", sessions[20].key, "what?", max_tokens=2, stop=()), (5, 6))
    for _ in range(8):
        world.step_ahead()
    assert world.waits[ask.seq_id] <= 5


def test_what_is_made_ahead_is_nothing_that_anybody_waits_for() -> None:
    world, rng = planning(), random.Random(14)
    session = world.session()
    while not session.next:
        world.record(session, ids_of(rng, 20))
    while not world.workload.is_idle:
        world.step()
    assert world.workload.ahead
    world.launch(world.begin())
    assert world.workload.out
    assert world.workload.is_idle
    world.record(session, ids_of(rng, 5))
    world.launch(world.begin())
    assert not world.workload.is_idle
    world.land()
    world.land()
    world.workload.check()
