"""What the loop does beside the walks: answers that are there already, calls, memory that runs out."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from queue import Queue

import pytest
from fakes import FakeFlight, FakeRunner
from oracle import fake_answer
from world import World, make_config, random_record

from streamproc.errors import BadAsk, OutOfMemory, StreamprocError
from streamproc.messages import Answer, Ask, Head, Mark, Query
from streamproc.schedule.plan import Plan
from streamproc.state import rollback
from streamproc.state.fork import Call
from streamproc.state.partition import Phase, Recovery

QUERY = Query("q", "how is {last}?", every=1, max_tokens=5)


@pytest.fixture
def world() -> World:
    world = World(random.Random(1), make_config(), num_partitions=1, num_blocks=200)
    world.rebalance_share = 0
    return world


def tokens_of(world: World, work: Callable[[], object]) -> int:
    before = world.processor.counters.tokens
    work()
    world.drain()
    return world.processor.counters.tokens - before


def ask(world: World, number: int, **changes: object) -> Answer:
    """The answer to the same question as the query's, or to one that is changed."""
    asked = replace(Ask(f"ask-{number}", "A", QUERY.question, max_tokens=QUERY.max_tokens), **changes)     # type: ignore[arg-type]
    world.log.append(world.config.topics.asks, 0, b"A", asked.encode())
    world.step()
    world.drain()
    return next(answer for answer in world.answers() if answer.id == asked.id)


def test_a_question_that_was_just_answered_is_answered_from_that_at_no_cost(world: World) -> None:
    world.register(QUERY)
    offset = world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    (flash,) = world.answers()
    assert tokens_of(world, lambda: ask(world, 1)) == 0
    assert tokens_of(world, lambda: ask(world, 2, min_offset=offset)) == 0
    for reply in world.answers()[1:]:
        assert (reply.text, reply.as_of, reply.question) == (flash.text, flash.as_of, flash.question)


@pytest.mark.parametrize("changes", [{"question": "why?"}, {"max_tokens": 4}, {"stop": ("x",)}])
def test_another_question_is_computed(changes: dict[str, object], world: World) -> None:
    world.register(QUERY)
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    assert tokens_of(world, lambda: ask(world, 1, **changes)) > 0


def test_an_answer_that_has_seen_less_than_there_is_does_for_an_ask_that_insists_on_no_more(world: World) -> None:
    world.register(replace(QUERY, every=2))
    offsets = [world.log.produce(0, random_record(world.rng, "A")) for _ in range(3)]
    world.drain()
    assert tokens_of(world, lambda: ask(world, 1, min_offset=offsets[1])) == 0
    assert ask(world, 2, min_offset=offsets[1]).as_of.offset == offsets[1]
    assert ask(world, 3).as_of.offset == offsets[2]
    assert ask(world, 4, min_offset=offsets[2]).as_of.offset == offsets[2]


def test_an_answer_of_what_was_rolled_back_is_not_given(world: World) -> None:
    world.register(QUERY)
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    session = world.processor.partitions[0].sessions["A"]
    assert session.newest
    session.truncate(0)
    assert not session.newest


def test_a_flash_hit_goes_out_while_the_device_works(world: World) -> None:
    world.register(QUERY)
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    hit = Ask("hit", "A", QUERY.question, max_tokens=QUERY.max_tokens, min_offset=0)
    seen: list[bool] = []

    class Flight(FakeFlight):
        def is_done(self, timeout_s: float) -> bool:
            seen.append(any(answer.id == "hit" for answer in world.answers()))
            if len(seen) == 1:
                world.log.append(world.config.topics.asks, 0, b"A", hit.encode())
            return len(seen) > 2

    world.processor.runner.launch = lambda plan: Flight(world.processor.runner, plan)     # type: ignore[method-assign]
    world.log.produce(0, random_record(world.rng, "A"))
    world.processor.step()
    world.processor.step()
    world.processor.step()
    assert seen[:3] == [False, True, True]


def finished(world: World, future: "Future[str]") -> str:
    world.drain()
    return future.result(0)


def test_a_call_is_continued_like_any_answer_beside_the_sessions(world: World) -> None:
    world.register(QUERY)
    for _ in range(5):
        world.log.produce(0, random_record(world.rng, "A"))
    prompts = [f"prompt number {i} " + "x" * i for i in range(20)]
    calls = [world.processor.calls.call(prompt, 1 + i % 7, stop=()) for i, prompt in enumerate(prompts)]
    for i, (prompt, call) in enumerate(zip(prompts, calls, strict=True)):
        ids = list(map(ord, prompt))
        assert finished(world, call) == fake_answer(world.processor.renderer, ids, 1 + i % 7, ())
    assert len(world.answers()) == 5


def test_a_call_may_come_from_another_thread_and_be_given_up(world: World) -> None:
    found: list[Future[str]] = []
    thread = threading.Thread(target=lambda: found.append(world.processor.calls.call("hello there", 3)))
    thread.start()
    thread.join()
    assert finished(world, found[0]) != ""
    given_up = world.processor.calls.call("never mind", 3)
    assert given_up.cancel()
    world.drain()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"),
    [
        ("", 3, "empty"),
        ("x", 0, "less than 1"),
        ("x", -5, "less than 1"),
        ("\ud800", 3, "half a character"),
        ("x" * 221, 3, "221 tokens, this worker takes 220"),
        ("x", 13, "worker.max_answer_tokens"),
    ],
)
def test_a_call_that_can_never_be_answered_says_why(prompt: str, max_tokens: int, reason: str, world: World) -> None:
    with pytest.raises(BadAsk, match=reason):
        finished(world, world.processor.calls.call(prompt, max_tokens))


def test_calls_that_are_open_when_the_worker_stops_are_told(world: World) -> None:
    call = world.processor.calls.call("x" * 200, 3)
    world.processor.close(deadline_s=0)
    with pytest.raises(StreamprocError, match="stopped"):
        call.result(0)
    with pytest.raises(StreamprocError, match="stopped"):
        world.processor.calls.call("too late", 3).result(0)


class Forgetful(FakeRunner):
    """Memory runs out in some steps, after some of their cells are written."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        super().__init__(200, 4)
        self.fails, self.num_launched = fails, 0

    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        if not plan.chunks:
            return {}
        self.num_launched += 1
        if self.fails(self.num_launched):
            for chunk in plan.chunks:
                for position in range(chunk.start, chunk.start + len(chunk.token_ids)):
                    self.cells[chunk.block_table[position // 4] * 4 + position % 4] = None
            raise OutOfMemory("out of memory")
        return super().run(plan)


def test_a_step_without_memory_is_tried_once_more_and_loses_nothing(world: World) -> None:
    world.processor.device.runner = Forgetful(lambda number: number in (3, 9, 14))
    world.register(QUERY)
    for _ in range(12):
        for sym in "ABC":
            world.log.produce(0, random_record(world.rng, sym))
        world.step()
    world.drain()
    plain = World(random.Random(2), make_config(), num_partitions=1, num_blocks=200)
    plain.register(QUERY)
    plain.log.topics.update({where: list(log) for where, log in world.log.topics.items() if "answers" not in where[0]})
    plain.drain()
    assert {a.id: a.text for a in world.answers()} == {a.id: a.text for a in plain.answers()}
    assert len(world.answers()) == 36


def test_a_worker_whose_memory_runs_out_twice_stops_with_one_line_and_commits_nothing_more(world: World) -> None:
    world.processor.device.runner = Forgetful(lambda number: number > 3)
    world.register(QUERY)
    for _ in range(9):
        world.log.produce(0, random_record(world.rng, "A"))
    with pytest.raises(OutOfMemory):
        world.drain()
    committed = len(world.answers())
    world.crash()
    world.drain()
    assert len({answer.id for answer in world.answers()}) == len(world.answers()) == 9 > committed


@pytest.mark.parametrize("numbers", [[0], [1], [0, 1]])
def test_partitions_may_go_and_come_back_while_the_device_works(numbers: list[int]) -> None:
    world = World(random.Random(3), make_config(), num_partitions=2, num_blocks=200)
    world.processor.runner.looks = lambda: 2
    world.register(QUERY)
    for turn in range(12):
        for number in range(2):
            world.log.produce(number, random_record(world.rng, "AB"[number]))
        world.processor.source.rebalances = numbers if turn in (4, 7) else []
        world.step()
    world.drain()
    assert len({answer.id for answer in world.answers()}) == len(world.answers()) == 24


def test_a_reply_that_no_epoch_can_carry_yet_makes_none(world: World) -> None:
    for _ in range(5):
        world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    partition = world.processor.partitions[0]
    partition.phase, partition.live_from = Phase.RESTORING, 10**6
    world.log.append(world.config.topics.asks, 0, b"A", b"{bad")
    before = world.processor._num_epochs
    for _ in range(4):
        world.processor.step()
    assert partition.replies
    assert world.processor._num_epochs - before <= 4


def test_a_truncated_generation_whose_shared_block_is_gone_is_computed_again(world: World) -> None:
    for _ in range(6):
        world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    partition = world.processor.partitions[0]
    generation = partition.sessions["A"].current
    offset = next(entry.offset for entry in generation.entries[2:] if entry.end % 4)
    rollback._truncate_session(world.processor.workload, partition.sessions["A"], offset + 1)
    assert generation.num_computed < generation.num_tokens
    assert generation.seq_id in world.processor.workload.growing


def test_a_call_that_comes_while_the_worker_stops_is_told(world: World) -> None:
    desk = world.processor.calls

    class Late(Queue[Call]):
        def put(self, call: Call, block: bool = True, timeout: float | None = None) -> None:
            desk.close()
            super().put(call)

    desk._arrived = Late()     # type: ignore[assignment]
    with pytest.raises(StreamprocError, match="stopped"):
        desk.call("hello", 3).result(0)


def test_a_session_whose_records_are_all_taken_back_is_remade_from_its_head(world: World) -> None:
    """Its older records are deleted: what its head counts is all that is known of them."""
    processor, partition = world.processor, world.processor.partitions[0]
    partition.heads["A"] = Head("A", 0, 7, {"q": Mark("v", 0, "d")})
    world.fate = "abort"
    world.log.produce(0, random_record(world.rng, "A"))
    for _ in range(20):
        world.step()
    world.fate = "ok"
    world.drain()
    assert processor.counters.aborted_epochs
    session = partition.sessions["A"]
    assert session.current.num_records == 8
    assert session.head is not None
    assert session.head.marks["q"].version == "v"


def test_a_partition_whose_log_ends_with_markers_of_transactions_is_live_once_it_is_read(world: World) -> None:
    processor, log = world.processor, world.log
    for _ in range(3):
        log.produce(0, random_record(world.rng, "A"))
    world.drain()
    heads = log.heads(0)
    processor.lost([0])
    processor.assigned({0: Recovery(0, 5, heads, 0)})
    world.source.positions[log.config.topics.records, 0] = 0
    for _ in range(10):
        processor.step()
    assert not processor.partitions[0].is_live
    processor.read_to({0: 4})
    processor.step()
    assert not processor.partitions[0].is_live
    processor.read_to({0: 5})
    processor.step()
    assert processor.partitions[0].is_live
    assert processor.partitions[0].next_offset == 5
