import itertools
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamproc.engine.build import Engine
from streamproc.engine.forward import Forward, TorchForward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.masks import Rows
from streamproc.engine.runner import ModelRunner
from streamproc.engine.transfers import Saved
from streamproc.errors import OutOfMemory, StreamprocError
from streamproc.schedule.plan import UNTOLD, Chunk, Constraint, Plan

IDS = tuple(range(3, 40))


def chunk(seq_id: int = 1, table: tuple[int, ...] = (0, 1, 2), num_samples: int = 1) -> Chunk:
    return Chunk(seq_id, 0, IDS, table, num_samples)


def test_only_what_samples_gets_a_token(engine: Engine) -> None:
    plan = Plan((), (chunk(7), chunk(8, (3, 4, 5), num_samples=0)))
    assert list(engine.runner.launch(plan).wait()) == [7]
    assert engine.runner.launch(Plan((), (chunk(num_samples=0),))).wait() == {}


def test_an_empty_plan_is_done_at_once(engine: Engine) -> None:
    assert engine.runner.launch(Plan((), ())).wait() == {}


def test_copies_are_made_without_chunks_too(engine: Engine) -> None:
    kv = engine.runner.kv
    kv.scatter([9], torch.ones(1, *kv.layout.block_shape))
    engine.runner.launch(Plan(((9, 10),), ())).wait()
    assert torch.equal(kv.gather([9]), kv.gather([10]))


def test_saves_then_loads_then_copies_then_chunks(engine: Engine) -> None:
    """Block 0 is saved, then loaded into, then copied, then computed: each sees what the one before left."""
    kv = engine.runner.kv
    kv.scatter(range(8), torch.randn(8, *kv.layout.block_shape).to(kv.layout.dtype))
    before, data = kv.read(0), kv.read(7)
    plan = Plan(((0, 5), (5, 6)), (chunk(),), ((0, b"old"), (5, b"copied")), ((0, data),))
    old_five = kv.read(5)
    flight = engine.runner.launch(plan)
    flight.wait()
    assert {name: bytes(saved) for name, saved in flight.saved.items()} == {b"old": bytes(before),
                                                                            b"copied": bytes(old_five)}
    assert bytes(kv.read(5)) == bytes(data)
    assert bytes(kv.read(6)) == bytes(old_five)
    assert bytes(kv.read(0)) not in (bytes(before), bytes(data))


def test_saves_and_loads_need_no_chunks_and_a_plan_without_saves_has_saved_nothing(engine: Engine) -> None:
    kv = engine.runner.kv
    kv.scatter([9], torch.ones(1, *kv.layout.block_shape))
    flight = engine.runner.launch(Plan((), (), ((9, b"ones"),)))
    assert flight.wait() == {}
    assert list(flight.saved) == [b"ones"]
    after = engine.runner.launch(Plan((), (), (), ((10, memoryview(bytes(flight.saved[b"ones"]))),)))
    assert after.wait() == {}
    assert after.saved == {}
    assert torch.equal(kv.gather([9]), kv.gather([10]))


@pytest.mark.parametrize("cut", [16, 32])
def test_a_sequence_goes_on_from_loaded_blocks_as_if_they_were_computed(cut: int, engine: Engine) -> None:
    kv, runner = engine.runner.kv, engine.runner
    whole = runner.launch(Plan((), (chunk(),))).wait()
    cells = runner.forward.cells(kv, (0, 1, 2), len(IDS))
    blocks = runner.launch(Plan((), (), tuple((i, bytes([i])) for i in range(cut // 16))))
    blocks.wait()
    kv.scatter(range(12), torch.full((12, *kv.layout.block_shape), 3.0))
    loads = tuple((4 + name[0], bytes(data)) for name, data in blocks.saved.items())
    rest = Chunk(1, cut, IDS[cut:], (4, 5, 6), 1)
    assert runner.launch(Plan((), (rest,), (), loads)).wait() == whole
    assert torch.equal(runner.forward.cells(kv, (4, 5, 6), len(IDS)), cells)


def test_loads_and_saves_of_a_step_with_lanes_come_before_any_lane(load: Callable[..., LoadedModel]) -> None:
    loaded = load("llama", torch.float32)
    runner = ModelRunner(loaded, KVCache(loaded.layout(16), 12, loaded.device), 1, lanes=2)
    tables = ((0, 1, 2), (3, 4, 5))
    whole = runner.launch(Plan((), tuple(chunk(i, table) for i, table in enumerate(tables)))).wait()
    first = [runner.kv.read(table[0]) for table in tables]
    runner.kv.scatter(range(12), torch.zeros(12, *runner.kv.layout.block_shape))
    rests = tuple(Chunk(i, 16, IDS[16:], table, 1) for i, table in enumerate(((6, 7, 8), (9, 10, 11))))
    plan = Plan((), (*rests, chunk(2, (0, 1, 2), 0)), ((6, b"zeros"),), ((6, first[0]), (9, first[1])))
    flight = runner.launch(plan)
    assert flight.wait() == whole
    assert not flight.saved[b"zeros"].any()
    runner.close()


@pytest.mark.parametrize("path", ["own", "kernels"])
def test_a_plan_may_be_launched_while_the_one_before_it_is_out(path: str, forward: Callable[..., Forward]) -> None:
    """It reads the cells of that one, and saves them; each gives what is its own."""
    found = forward(path, "llama")
    runners = [ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 12, found.loaded.device)) for _ in range(2)]
    plans = [
        Plan((), (Chunk(1, 0, IDS[:20], (0, 1, 2)), chunk(2, (3, 4, 5)))),
        Plan(((3, 6),), (Chunk(1, 20, IDS[20:], (0, 1, 2), 1),), ((0, b"first"), (3, b"second"))),
        Plan((), (), ((1, b"third"), (6, b"copy"))),
    ]
    for runner in runners:
        runner.forward = found
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
    for runner in runners:
        runner.forward = SimpleNamespace(close=lambda: None)  # the other one is used on
        runner.close()


@pytest.mark.parametrize("path", ["torch", "own", "kernels"])
def test_a_plan_goes_on_from_tokens_that_the_one_before_it_samples(path: str, forward: Callable[..., Forward]) -> None:
    """Nobody outside has seen them; sequences come, go and change their places."""
    found = forward(path, "llama")
    runner = ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 20, found.loaded.device))
    runner.forward = found
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
    runner.forward = SimpleNamespace(close=lambda: None)
    runner.close()


@pytest.mark.parametrize("path", ["own", "kernels"])
def test_a_plan_that_goes_on_from_a_failed_one_says_so(
    path: str, forward: Callable[..., Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = forward(path, "llama")
    runner = ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 12, found.loaded.device))
    runner.forward = found
    runner.launch(Plan((), (chunk(),))).wait()
    act, compute, calls = ("_layers" if path == "kernels" else "run"), None, []
    compute = getattr(type(found), act)

    def short(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out")
        return compute(*arguments)

    monkeypatch.setattr(type(found), act, short)
    lacking = runner.launch(Plan((), (chunk(),)))
    behind = runner.launch(Plan((), (Chunk(1, len(IDS), (UNTOLD,), (0, 1, 2), 1),)))
    with pytest.raises(OutOfMemory, match="lower engine"):
        lacking.wait()
    with pytest.raises(StreamprocError, match="goes on from was not carried out"):
        behind.wait()
    runner.forward = SimpleNamespace(close=lambda: None)
    runner.close()


@pytest.mark.parametrize("path", ["own", "kernels"])
def test_no_memory_is_told_of_the_plan_that_lacked_it(
    path: str, forward: Callable[..., Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = forward(path, "llama")
    runner = ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 12, found.loaded.device))
    runner.forward = found
    act = "begin" if path == "kernels" else "run"
    compute, calls = getattr(type(found), act), []

    def short(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out")
        return compute(*arguments)

    monkeypatch.setattr(type(found), act, short)
    lacking, fine = (runner.launch(Plan((), (chunk(),))) for _ in range(2))
    with pytest.raises(OutOfMemory, match="lower engine"):
        lacking.wait()
    assert list(fine.wait()) == [1]
    runner.forward = SimpleNamespace(close=lambda: None)
    runner.close()


def test_a_step_waits_for_no_saves_of_the_one_before_it(
    forward: Callable[..., Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for its tokens nor its masks; and its time is its own."""
    found = forward("kernels", "llama")
    runner = ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 12, found.loaded.device))
    runner.forward = found
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
    runner.forward = SimpleNamespace(close=lambda: None)
    runner.close()


@pytest.mark.parametrize("ends", [True, False])
def test_what_comes_after_an_answers_end_need_not_be_a_number(
    ends: bool, forward: Callable[..., Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that ends it is fed all the same."""
    found = forward("kernels", "llama")
    runner = ModelRunner(found.loaded, KVCache(found.loaded.layout(16), 12, found.loaded.device))
    runner.forward = found
    token = runner.launch(Plan((), (chunk(),))).wait()[1]
    if ends:
        monkeypatch.setattr(type(runner), "eos_ids", frozenset(token))
    layers = type(found)._layers

    def spoilt(self: Any, kv: Any, step: Any, num_slots: int) -> Any:
        rows = layers(self, kv, step, num_slots)
        return rows * torch.nan if step.positions[0] == len(IDS) else rows

    monkeypatch.setattr(type(found), "_layers", spoilt)
    whole = runner.launch(Plan((), (chunk(),)))
    behind = runner.launch(Plan((), (Chunk(1, len(IDS), (UNTOLD,), (0, 1, 2), 1),)))
    assert whole.wait()[1] == token
    if ends:
        assert list(behind.wait()) == [1]
    else:
        with pytest.raises(StreamprocError, match="not finite"):
            behind.wait()
    runner.forward = SimpleNamespace(close=lambda: None)
    runner.close()


def test_a_step_writes_its_own_cells_only(engine: Engine) -> None:
    kv = engine.runner.kv
    kv.scatter(range(20), torch.full((20, *kv.layout.block_shape), 7.0))
    engine.runner.launch(Plan((), (chunk(table=(11, 4, 15)),))).wait()
    assert (kv.gather([block for block in range(20) if block not in (11, 4, 15)]) == 7).all()
    assert (engine.runner.forward.cells(kv, (11, 4, 15), 48)[..., len(IDS):, :] == 7).all()
    assert not kv.blocks[kv.null_block].any()


@pytest.mark.parametrize("path", ["own", "torch", "kernels"])
def test_what_other_sequences_hold_does_not_reach_a_row(path: str, forward: Callable[..., Forward]) -> None:
    found = forward(path, "llama")
    loaded = found.loaded
    clean, dirty = (KVCache(loaded.layout(16), 8, loaded.device) for _ in range(2))
    dirty.scatter([3, 4, 5, 6, 7], torch.full((5, *dirty.layout.block_shape), float("nan")))
    plan = Plan((), (chunk(),))
    assert run_step(found, clean, plan) == run_step(found, dirty, plan)
    assert torch.equal(clean.gather([0, 1, 2]), dirty.gather([0, 1, 2]))


def test_launch_returns_while_the_step_runs(engine: Engine) -> None:
    started, go = threading.Event(), threading.Event()
    busy = threading.Thread(target=engine.runner.call, args=(lambda: (started.set(), go.wait(30)),))
    busy.start()
    assert started.wait(30)
    flight = engine.runner.launch(Plan((), (chunk(),)))
    assert not flight.computing.done()
    go.set()
    assert list(flight.wait()) == [1]
    busy.join()


def test_an_error_in_a_step_is_raised_by_wait(engine: Engine) -> None:
    flight = engine.runner.launch(Plan((), (chunk(), chunk())))
    with pytest.raises(AssertionError, match="two chunks of one sequence"):
        flight.wait()
    with pytest.raises(AssertionError, match="without cells"):
        engine.runner.launch(Plan((), (chunk(table=(0, 1)),))).wait()
    with pytest.raises(AssertionError, match="outside the pool"):
        engine.runner.launch(Plan((), (chunk(table=(0, 1, engine.runner.num_blocks)),))).wait()


class Fails:
    """A model that raises, or answers with these logits."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, **_: Any) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self


class FailsFor:
    """A model that raises in the threads of lanes."""

    def __init__(self, model: Any, current: Callable[[], threading.Thread]) -> None:
        self.model, self.current = model, current

    def __call__(self, **arguments: Any) -> Any:
        if "lane" in self.current().name:
            raise RuntimeError("not in a lane")
        return self.model(**arguments)


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory"),
                                     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")])
def test_out_of_memory_is_one_line(problem: Exception, load: Callable[..., LoadedModel]) -> None:
    loaded = load("llama", torch.float32)
    broken = LoadedModel(**{**fields(loaded), "model": Fails(problem)})
    with pytest.raises(StreamprocError, match=r"out of memory on cpu in a step of 37 tokens; lower engine.step_tokens"):
        run_step(TorchForward(broken, 4), KVCache(loaded.layout(16), 8, loaded.device), Plan((), (chunk(),)))


def test_an_error_in_a_lane_is_the_steps_and_the_next_step_goes_on(load: Callable[..., LoadedModel]) -> None:
    loaded = load("llama", torch.float32)
    runner = ModelRunner(loaded, KVCache(loaded.layout(16), 12, loaded.device), 1, lanes=2)
    plan = Plan((), (chunk(1), chunk(2, (3, 4, 5))))
    runner.forward = TorchForward(loaded, 4)
    whole = runner.launch(plan).wait()
    assert runner.num_lanes == 2
    broken = LoadedModel(**{**fields(loaded), "model": FailsFor(loaded.model, threading.current_thread)})
    runner.forward = TorchForward(broken, 4)
    with pytest.raises(RuntimeError, match="not in a lane"):
        runner.launch(plan).wait()
    runner.forward = TorchForward(loaded, 4)
    assert runner.launch(plan).wait() == whole
    runner.close()


def test_a_machine_that_is_not_exact_computes_in_one_part(load: Callable[..., LoadedModel]) -> None:
    loaded = LoadedModel(**{**fields(load("llama", torch.float32)), "has_experts": True})
    runner = ModelRunner(loaded, KVCache(loaded.layout(16), 12, loaded.device), 1, lanes=2)
    assert (runner.exact, runner.num_lanes, runner.call(torch.get_num_threads)) == (False, 1, 2)
    runner.close()


def test_logits_that_are_no_numbers_are_an_error(load: Callable[..., LoadedModel]) -> None:
    loaded = load("llama", torch.float32)
    broken = Fails(None)
    broken.logits = torch.full((1, 4, 300), float("nan"))
    loaded = LoadedModel(**{**fields(loaded), "model": broken})
    with pytest.raises(StreamprocError, match="not finite"):
        run_step(TorchForward(loaded, 4), KVCache(loaded.layout(16), 8, loaded.device), Plan((), (chunk(),)))


def fields(loaded: LoadedModel) -> dict[str, Any]:
    return {name: getattr(loaded, name) for name in LoadedModel.__dataclass_fields__}


def test_the_fingerprint_tells_models_and_dtypes_apart(load: Callable[..., LoadedModel]) -> None:
    loaded = [load(name, dtype) for name in ("llama", "phi3") for dtype in (torch.float32, torch.bfloat16)]
    runners = [ModelRunner(model, KVCache(model.layout(16), 4, model.device)) for model in loaded]
    again = ModelRunner(loaded[0], KVCache(loaded[0].layout(32), 8, loaded[0].device))
    assert len({runner.fingerprint for runner in runners}) == 4
    assert again.fingerprint == runners[0].fingerprint
    for runner in (*runners, again):
        assert runner.exact
        runner.close()
        runner.close()


def test_the_fingerprint_tells_libraries_and_chips_apart(load: Callable[..., LoadedModel],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", torch.float32)

    def found() -> str:
        runner = ModelRunner(loaded, KVCache(loaded.layout(16), 4, loaded.device))
        runner.close()
        return runner.fingerprint

    prints = {found()}
    monkeypatch.setattr("streamproc.engine.cpu.forward.transformers.__version__", "5.99.0")
    prints.add(found())
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "NEON")
    prints.add(found())
    assert len(prints) == 3
