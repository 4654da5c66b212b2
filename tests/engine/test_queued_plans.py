"""Plans that are launched while others are out: in their order, and from what those sample."""

import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamproc.engine.forward import Forward
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.masks import Rows
from streamproc.engine.runner import ModelRunner
from streamproc.engine.transfers import Saved
from streamproc.errors import OutOfMemory, StreamprocError
from streamproc.schedule.plan import UNTOLD, Chunk, Constraint, Plan

IDS = tuple(range(3, 40))
MakeRunner = Callable[[str], ModelRunner]


@pytest.fixture
def make_runner(forward: Callable[..., Forward]) -> Iterator[MakeRunner]:
    """For a forward, by what computes it, that others use too."""
    made: list[ModelRunner] = []

    def make(path: str) -> ModelRunner:
        found = forward(path, "llama")
        made.append(ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 20, found.loaded.device)))
        made[-1].forward = found
        return made[-1]

    yield make
    for runner in made:
        runner.forward = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]
        runner.close()


def lack_memory_once(monkeypatch: pytest.MonkeyPatch, forward: Forward, act: str) -> None:
    """The first time that this method of it is called."""
    compute, calls = getattr(type(forward), act), itertools.count()

    def short(*arguments: Any) -> Any:
        if next(calls) == 0:
            raise torch.OutOfMemoryError("out")
        return compute(*arguments)

    monkeypatch.setattr(type(forward), act, short)


def chunk(seq_id: int = 1, table: tuple[int, ...] = (0, 1, 2), num_samples: int = 1) -> Chunk:
    return Chunk(seq_id, 0, IDS, table, num_samples)


@pytest.mark.parametrize("path", ["own", "kernels"])
def test_a_plan_may_be_launched_while_the_one_before_it_is_out(path: str, make_runner: MakeRunner) -> None:
    """It reads the cells of that one, and saves them; each gives what is its own."""
    runners = [make_runner(path) for _ in range(2)]
    plans = [
        Plan((), (Chunk(1, 0, IDS[:20], (0, 1, 2)), chunk(2, (3, 4, 5)))),
        Plan(((3, 6),), (Chunk(1, 20, IDS[20:], (0, 1, 2), 1),), ((0, b"first"), (3, b"second"))),
        Plan((), (), ((1, b"third"), (6, b"copy"))),
    ]
    ahead = [runners[0].launch(plan) for plan in plans[:2]]
    results = [ahead[0].wait()]
    ahead.append(runners[0].launch(plans[2]))
    results += [flight.wait() for flight in ahead[1:]]
    apart = []
    for i, plan in enumerate(plans):
        apart.append(runners[1].launch(plan))
        assert apart[-1].wait() == results[i]
    assert [sorted(flight.saved) for flight in ahead] == [[], [b"first", b"second"], [b"copy", b"third"]]
    for one, other in zip(ahead, apart, strict=True):
        assert all((one.saved[name] == other.saved[name]).all() for name in other.saved)
        assert one.seconds > 0


@pytest.mark.parametrize("path", ["torch", "own", "kernels"])
def test_a_plan_goes_on_from_tokens_that_the_one_before_it_samples(path: str, make_runner: MakeRunner) -> None:
    """Nobody outside has seen them; sequences come, go and change their places."""
    runner = make_runner(path)
    tables = {i: (4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3) for i in range(1, 5)}
    texts = {i: tuple(range(3 + i, 23 + 5 * i)) for i in tables}

    def first(i: int) -> Chunk:
        return Chunk(i, 0, texts[i], tables[i], 1)

    def goes_on(i: int, num_tokens: int) -> Chunk:
        return Chunk(i, len(texts[i]) + num_tokens - 1, (UNTOLD,), tables[i], 1)

    plans = [(first(1), first(2), Chunk(4, 0, texts[4][:9], tables[4])),
             (first(3), goes_on(2, 1), goes_on(1, 1)),
             (Chunk(4, 9, texts[4][9:], tables[4], 1), goes_on(1, 2), goes_on(3, 1)),
             (goes_on(3, 2), goes_on(4, 1))]  # fmt: skip
    flights = [runner.launch(Plan((), plans[0]))]
    landed = []
    for chunks in plans[1:]:
        flights.append(runner.launch(Plan((), chunks)))
        landed.append(flights.pop(0).wait())
    landed.append(flights.pop().wait())
    sampled = {i: tuple(itertools.chain(*(found.get(i, ()) for found in landed))) for i in tables}
    assert {i: len(tokens) for i, tokens in sampled.items()} == {1: 3, 2: 2, 3: 3, 4: 2}
    for i, tokens in sampled.items():
        for num_known in range(len(tokens)):
            whole = Chunk(9, 0, (*texts[i], *tokens[:num_known]), (0, 1, 2, 3), 1)
            assert runner.launch(Plan((), (whole,))).wait()[9] == tokens[num_known:num_known + 1]


@pytest.mark.parametrize("path", ["own", "kernels"])
def test_a_plan_that_goes_on_from_a_failed_one_says_so(
    path: str, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(path)
    runner.launch(Plan((), (chunk(),))).wait()
    lack_memory_once(monkeypatch, runner.forward, "_layers" if path == "kernels" else "run")
    lacking = runner.launch(Plan((), (chunk(),)))
    behind = runner.launch(Plan((), (Chunk(1, len(IDS), (UNTOLD,), (0, 1, 2), 1),)))
    with pytest.raises(OutOfMemory, match="lower engine"):
        lacking.wait()
    with pytest.raises(StreamprocError, match="goes on from was not carried out"):
        behind.wait()


def test_nor_does_it_go_on_from_an_older_one_where_the_newest_did_not_begin(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has sampled the same sequence."""
    runner = make_runner("kernels")
    runner.launch(Plan((), (chunk(),))).wait()

    def failing(_: Plan) -> None:
        monkeypatch.undo()
        raise StreamprocError("no transfers")

    monkeypatch.setattr(runner._transfers, "begin", failing)
    failed = runner.launch(Plan((), (chunk(),)))
    behind = runner.launch(Plan((), (Chunk(1, len(IDS), (UNTOLD,), (0, 1, 2), 1),)))
    with pytest.raises(StreamprocError, match="no transfers"):
        failed.wait()
    with pytest.raises(StreamprocError, match="goes on from was not carried out"):
        behind.wait()


@pytest.mark.parametrize("path", ["own", "kernels"])
def test_no_memory_is_told_of_the_plan_that_lacked_it(
    path: str, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(path)
    lack_memory_once(monkeypatch, runner.forward, "begin" if path == "kernels" else "run")
    lacking, fine = (runner.launch(Plan((), (chunk(),))) for _ in range(2))
    with pytest.raises(OutOfMemory, match="lower engine"):
        lacking.wait()
    assert list(fine.wait()) == [1]


@pytest.mark.parametrize("path", ["torch", "own", "kernels"])
def test_what_a_step_without_memory_had_taken_is_free_for_the_next_one(
    path: str, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its error is known for longer."""
    runner, taken = make_runner(path), []

    def short(*_: Any) -> None:
        held = torch.empty(9)
        taken.append(weakref.ref(held))
        raise torch.OutOfMemoryError("out")

    monkeypatch.setattr(type(runner.forward), "_layers" if path == "kernels" else "run", short)
    lacking = runner.launch(Plan((), (chunk(),)))
    with pytest.raises(OutOfMemory) as problem:
        lacking.wait()
    assert problem.value.__cause__
    assert [tensor() for tensor in taken] == [None]


def test_a_step_waits_for_no_saves_of_the_one_before_it(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for its tokens nor its masks; and its time is its own."""
    runner = make_runner("kernels")
    began, masked = runner._transfers.begin, []

    def slow(plan: Plan) -> Callable[[], Saved]:
        saved = began(plan)
        return (lambda: time.sleep(1.0) or saved()) if plan.saves else saved

    def masks(chunks: Sequence[Chunk]) -> Rows:
        masked.append((time.perf_counter(), [chunk.constraint.answer_ids for chunk in chunks if chunk.constraint]))
        return [None] * len(chunks)

    monkeypatch.setattr(runner._transfers, "begin", slow)
    runner.constrainer = SimpleNamespace(masks=masks, forced=lambda *_: (), prepare=None)  # type: ignore[assignment]
    first = Chunk(1, 0, IDS, (0, 1, 2), 1, constraint=Constraint("any"))
    flights = [runner.launch(Plan((), (first,), ((5, b"name"),)))]
    going = Chunk(1, len(IDS), (UNTOLD,), (0, 1, 2), 1, constraint=Constraint("any"))
    flights.append(runner.launch(Plan((), (going,))))
    assert not flights[0].is_done(0.5)
    assert flights[1].is_done(0.0)
    token = flights[0].wait()[1]
    assert list(flights[0].saved) == [b"name"]
    assert [seen for _, seen in masked] == [[()], [token]]
    assert flights[0].ended_at <= masked[1][0] <= flights[1].ended_at
    assert flights[1].seconds < 0.4


@pytest.mark.parametrize("ends", [True, False])
def test_what_comes_after_an_answers_end_need_not_be_a_number(
    ends: bool, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that ends it is fed all the same."""
    runner = make_runner("kernels")
    token = runner.launch(Plan((), (chunk(),))).wait()[1]
    if ends:
        monkeypatch.setattr(type(runner), "eos_ids", frozenset(token))
    layers = type(runner.forward)._layers

    def spoilt(self: Any, kv: Any, step: Any, num_slots: int) -> Any:
        rows = layers(self, kv, step, num_slots)
        return rows * torch.nan if step.positions[0] == len(IDS) else rows

    monkeypatch.setattr(type(runner.forward), "_layers", spoilt)
    whole = runner.launch(Plan((), (chunk(),)))
    behind = runner.launch(Plan((), (Chunk(1, len(IDS), (UNTOLD,), (0, 1, 2), 1),)))
    assert whole.wait()[1] == token
    if ends:
        assert list(behind.wait()) == [1]
    else:
        with pytest.raises(StreamprocError, match="not finite"):
            behind.wait()
