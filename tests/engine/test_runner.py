import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamproc.engine.build import Engine
from streamproc.engine.forward import Forward, TorchForward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.runner import ModelRunner
from streamproc.errors import StreamprocError
from streamproc.schedule.plan import Chunk, Plan

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
