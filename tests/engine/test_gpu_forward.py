"""Steps of the GPU's forward on the CPU, by the kernels' references: what is kept from step to step changes nothing."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.kv_cache import KVCache
from streamproc.kernels import reference
from streamproc.schedule.plan import UNTOLD, Chunk

NUM_BLOCKS, SIZE = 200, 16


class Kept:
    """Graphs in whose place the work is done: what belongs to a bucket is kept as where there are graphs."""

    are_used = True

    def run(self, _: Any, work: Callable[[], Any]) -> Any:
        return work()

    def forget(self) -> None:
        pass


def steps(rng: random.Random) -> list[list[Chunk]]:
    """Sequences of one session that go on token by token, a few at once, end, and begin anew under the same numbers."""
    free = rng.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    shared = tuple(free[:12])       # three splits
    pools = [free[12 + 40 * i:12 + 40 * (i + 1)] for i in range(4)]
    found = [[Chunk(9, 0, tuple(rng.randrange(300) for _ in range(12 * SIZE)), shared, 1)]]
    ends: dict[int, tuple[int, tuple[int, ...]]] = {}
    for _ in range(12):
        chunks = []
        for seq_id in range(4):
            if seq_id not in ends or rng.random() < 0.05:
                num_shared = rng.choice([0, 4, 12])
                own = rng.sample(pools[seq_id], 20)
                ends[seq_id] = num_shared * SIZE, (*shared[:num_shared], *own)
            start, table = ends[seq_id]
            num_rows = 40 if not start else rng.choice([1, 1, 1, 1, 4])
            ids = tuple(rng.randrange(300) for _ in range(num_rows))
            chunks.append(Chunk(seq_id, start, ids, table, rng.randrange(min(num_rows, 4) + 1)))
            ends[seq_id] = start + num_rows, table
        found.append(chunks)
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_is_kept_changes_nothing(forward: Any, name: str) -> None:
    of_model = forward("kernels", name)
    pools = [KVCache(of_model.loaded.layout(SIZE), NUM_BLOCKS, torch.device("cpu")) for _ in range(2)]
    keeping = GpuForward(of_model.loaded, of_model.program, reference)
    keeping._graphs = Kept()
    num_same = 0
    with torch.inference_mode():
        for chunks in steps(random.Random(0)):
            anew = GpuForward(of_model.loaded, of_model.program, reference)
            before = keeping._before
            found, wanted = keeping.best(pools[0], chunks), anew.best(pools[1], chunks)
            for one, other in zip(found, wanted, strict=True):
                assert (one == other).all()
            assert torch.equal(pools[0].data, pools[1].data)
            num_same += bool(before and keeping._before and keeping._before.step.reads is before.step.reads)
    assert num_same


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_step_may_be_begun_before_the_one_on_the_device_is_waited_for(forward: Any, name: str) -> None:
    of_model = forward("kernels", name)
    pools = [KVCache(of_model.loaded.layout(SIZE), NUM_BLOCKS, torch.device("cpu")) for _ in range(2)]
    ahead, alone = (GpuForward(of_model.loaded, of_model.program, reference) for _ in range(2))
    ahead._graphs = Kept()
    found, out = [], []
    with torch.inference_mode():
        for chunks in steps(random.Random(1)):
            out.append(ahead.begin(pools[0], chunks))
            if len(out) == 2:
                found.append(out.pop(0)())
        found.append(out.pop()())
        wanted = [alone.run(pools[1], chunks) for chunks in steps(random.Random(1))]
    assert found == wanted
    assert torch.equal(pools[0].data, pools[1].data)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_tokens_that_the_host_has_not_seen_give_the_same_bits(forward: Any, name: str) -> None:
    """Steps of one token for each of some sequences, in other places each time, small enough for graphs."""
    of_model, rng = forward("kernels", name), random.Random(2)
    pools = [KVCache(of_model.loaded.layout(SIZE), NUM_BLOCKS, torch.device("cpu")) for _ in range(2)]
    ahead, alone = (GpuForward(of_model.loaded, of_model.program, reference) for _ in range(2))
    ahead._graphs = Kept()
    tables = {i: tuple(range(10 * i, 10 * i + 10)) for i in range(1, 7)}
    ends = dict.fromkeys(tables, 20)
    first = [Chunk(i, 0, tuple(rng.randrange(300) for _ in range(20)), tables[i], 1) for i in tables]
    with torch.inference_mode():
        coming, told = [ahead.begin(pools[0], first)], [alone.run(pools[1], first)]
        going = list(tables)
        for _ in range(8):
            going = rng.sample(going, max(len(going) - rng.randrange(2), 1))
            chunks = [Chunk(i, ends[i], (UNTOLD,), tables[i], 1) for i in going]
            coming.append(ahead.begin(pools[0], chunks))
            found = coming.pop(0)()
            assert found == told[-1]
            known = [Chunk(i, ends[i], told[-1][i], tables[i], 1) for i in going]
            told.append(alone.run(pools[1], known))
            for i in going:
                ends[i] += 1
        assert coming.pop()() == told[-1]
    assert torch.equal(pools[0].data, pools[1].data)
