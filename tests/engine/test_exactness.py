"""The contract of the engine: cells and tokens do not depend on chunking, company, forks or place in the pool."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from streamproc.engine.choice import choose_forward, torch_forward
from streamproc.engine.cpu.forward import CpuForward
from streamproc.engine.exact import MULTIPLES
from streamproc.engine.forward import Forward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.lanes import split
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.runner import ModelRunner
from streamproc.schedule.plan import Chunk, Plan

BLOCK_SIZE = 16
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "smollm2", "smollm3", "random-tiny")
DTYPES = (torch.float32, torch.bfloat16)
PATHS = ("own", "torch", "kernels")
Load = Callable[[str, torch.dtype], LoadedModel]
GetForward = Callable[..., Forward]


@dataclass
class Sequence:
    """A sequence in the making, or a fork of one."""

    seq_id: int
    ids: list[int]
    num_computed: int = 0
    table: list[int] = field(default_factory=list)
    next_token: int | None = None

    @property
    def is_done(self) -> bool:
        return self.num_computed == len(self.ids)


class Walk:
    """Random plans over a pool whose blocks are handed out in random order."""

    def __init__(self, forward: Forward, seed: int) -> None:
        self.random = random.Random(seed)
        self.forward = forward
        self.kv = KVCache(forward.loaded.layout(BLOCK_SIZE), 200, forward.loaded.device)
        self.free = self.random.sample(range(200), 200)
        self.sequences: list[Sequence] = []

    def new(self, num_tokens: int) -> None:
        ids = [self.random.randrange(3, 90) for _ in range(num_tokens)]
        self.sequences.append(Sequence(len(self.sequences), ids))

    def fork(self, parent: Sequence, num_tokens: int) -> list[tuple[int, int]]:
        """A tail on all that its parent has computed: full blocks shared, the partly filled one copied."""
        base = parent.num_computed
        ids = parent.ids[:base] + [self.random.randrange(3, 90) for _ in range(num_tokens)]
        fork = Sequence(len(self.sequences), ids, base, parent.table[:base // BLOCK_SIZE])
        self.sequences.append(fork)
        if base % BLOCK_SIZE == 0:
            return []
        fork.table.append(self.free.pop())
        return [(parent.table[base // BLOCK_SIZE], fork.table[-1])]

    def step(self) -> None:
        copies: list[tuple[int, int]] = []
        if self.random.random() < 0.3:
            parent = self.random.choice(self.sequences)
            if parent.num_computed and len(self.sequences) < 9:
                copies = self.fork(parent, self.random.randint(1, 20))
        behind = [sequence for sequence in self.sequences if not sequence.is_done]
        chosen = self.random.sample(behind, self.random.randint(1, len(behind)))
        chunks = [self.chunk(sequence, self.random.choice((1, 1, 2, 3, 5, 17, 64, 200))) for sequence in chosen]
        found = run_step(self.forward, self.kv, Plan(tuple(copies), tuple(chunks)))
        for sequence, chunk in zip(chosen, chunks, strict=True):
            sequence.num_computed += len(chunk.token_ids)
            (sequence.next_token,) = found.get(sequence.seq_id, (None,))

    def chunk(self, sequence: Sequence, num_tokens: int) -> Chunk:
        start = sequence.num_computed
        ids = tuple(sequence.ids[start:start + num_tokens])
        while len(sequence.table) * BLOCK_SIZE < start + len(ids):
            sequence.table.append(self.free.pop())
        return Chunk(sequence.seq_id, start, ids, tuple(sequence.table), int(start + len(ids) == len(sequence.ids)))

    def cells(self, sequence: Sequence) -> torch.Tensor:
        return self.forward.cells(self.kv, sequence.table, len(sequence.ids))


def alone(forward: Forward, ids: list[int]) -> tuple[torch.Tensor, int]:
    """Cells and next token of one sequence in one chunk, from nothing."""
    table, loaded = list(range(-(-len(ids) // BLOCK_SIZE))), forward.loaded
    kv = KVCache(loaded.layout(BLOCK_SIZE), len(table), loaded.device)
    (token,) = run_step(forward, kv, Plan((), (Chunk(0, 0, tuple(ids), tuple(table), 1),)))[0]
    return forward.cells(kv, table, len(ids)), token


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("path", PATHS)
def test_cells_and_tokens_are_bit_equal_to_one_chunk_alone(path: str, name: str, dtype: torch.dtype, seed: int,
                                                           forward: GetForward) -> None:
    walk = Walk(forward(path, name, dtype), seed)
    for num_tokens in (640, 70, 16, 33):
        walk.new(num_tokens)
    while not all(sequence.is_done for sequence in walk.sequences):
        walk.step()
    assert len(walk.sequences) > 4
    for sequence in walk.sequences:
        cells, token = alone(walk.forward, sequence.ids)
        assert torch.equal(walk.cells(sequence), cells)
        assert sequence.next_token == token


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("path", PATHS)
def test_a_draft_holds_as_far_as_it_is_what_would_have_been_decoded(path: str, name: str, dtype: torch.dtype,
                                                                    forward: GetForward) -> None:
    computes, ids = forward(path, name, dtype), random.Random(9).choices(range(3, 90), k=75)
    expected = greedy(computes, ids, 9)
    table = tuple(range(-(-(len(ids) + 9) // BLOCK_SIZE)))
    kv = KVCache(computes.loaded.layout(BLOCK_SIZE), 2 * len(table), computes.loaded.device)
    others = tuple(block + len(table) for block in table)
    for num_right in range(9):
        draft = (*expected[:num_right], *((token + 1) % 90 for token in expected[num_right:8]))
        chunks = (Chunk(0, 0, (*ids, *draft), table, 9), Chunk(1, 0, tuple(ids[:40]), others, 1))
        found = run_step(computes, kv, Plan((), chunks))
        assert found[0] == tuple(expected[:num_right + 1])
        assert len(found[1]) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_this_machine_is_measured_to_be_exact(name: str, dtype: torch.dtype, load: Load) -> None:
    with torch.inference_mode():
        forward, is_exact = torch_forward(load(name, dtype), BLOCK_SIZE)
    assert forward.row_multiple in MULTIPLES
    assert is_exact
    forward, is_exact = choose_forward(load(name, dtype), BLOCK_SIZE, 2)
    assert isinstance(forward, CpuForward)
    assert is_exact
    forward.close()


@pytest.mark.parametrize("block_size", [1, 64, 256])
def test_large_and_small_blocks_are_measured_too(block_size: int, load: Load) -> None:
    with torch.inference_mode():
        forward, is_exact = torch_forward(load("gemma3", torch.float32), block_size)
    assert forward.row_multiple in MULTIPLES
    assert is_exact
    forward, is_exact = choose_forward(load("gemma3", torch.float32), block_size, 1)
    assert isinstance(forward, CpuForward) == (block_size > 1)
    assert is_exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lanes_give_the_bits_of_one(dtype: torch.dtype, load: Load) -> None:
    loaded, rng = load("gemma3", dtype), random.Random(5)
    pools = [KVCache(loaded.layout(BLOCK_SIZE), 60, loaded.device) for _ in range(2)]
    runners = [ModelRunner(loaded, kv, 1, lanes) for kv, lanes in zip(pools, (1, 3), strict=True)]
    starts = [0] * 4
    for _ in range(6):
        sizes = [rng.choice((1, 20, 60)) for _ in starts]
        chunks = [
            Chunk(i, start, tuple(rng.choices(range(3, 90), k=size)), tuple(range(15 * i, 15 * i + 15)), int(size > 1))
            for i, (start, size) in enumerate(zip(starts, sizes, strict=True)) if start + size <= 15 * BLOCK_SIZE
        ]  # fmt: skip
        for chunk in chunks:
            starts[chunk.seq_id] += len(chunk.token_ids)
        plan = Plan(((0, 59),), tuple(chunks))
        found = [runner.launch(plan).wait() for runner in runners]
        assert found[0] == found[1]
        assert torch.equal(pools[0].blocks, pools[1].blocks)
    for runner in runners:
        runner.close()


def test_a_plan_is_split_evenly_and_keeps_its_chunks_whole() -> None:
    chunks = tuple(Chunk(i, 0, (1,) * size, (i,)) for i, size in enumerate((90, 40, 40, 8)))
    plan = Plan(((1, 2),), chunks)
    parts = split(plan, 2)
    assert sorted(chunk.seq_id for part in parts for chunk in part.chunks) == [0, 1, 2, 3]
    assert sorted(part.num_tokens for part in parts) == [88, 90]
    assert [part.copies for part in parts] == [plan.copies, ()]
    assert split(Plan((), chunks[3:]), 2) == [Plan((), chunks[3:])]
    assert split(plan, 1) == [plan]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("path", PATHS)
def test_greedy_ids_equal_plain_transformers_in_float32(path: str, name: str, forward: GetForward,
                                                        plain: Callable[[str], Any]) -> None:
    reference = plain(name)
    ids = random.Random(7).choices(range(3, 90), k=150)
    with torch.inference_mode():
        expected = reference.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                                      do_sample=False, use_cache=False, max_new_tokens=12,
                                      eos_token_id=None, pad_token_id=0)[0, len(ids):].tolist()
    assert greedy(forward(path, name), ids, 12) == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("path", PATHS)
def test_tokens_equal_plain_transformers_past_a_tile_of_keys(path: str, name: str, forward: GetForward,
                                                             plain: Callable[[str], Any]) -> None:
    reference = plain(name)
    ids = random.Random(8).choices(range(3, 90), k=1100)
    rows = torch.arange(600, 1100, 100)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids]), use_cache=False, logits_to_keep=rows).logits[0].argmax(-1).tolist()
    assert [greedy(forward(path, name), ids[:row + 1], 1)[0] for row in rows] == expected


def greedy(forward: Forward, ids: list[int], num_tokens: int) -> list[int]:
    """Prefill in two chunks, then token by token."""
    table, loaded = tuple(range(-(-(len(ids) + num_tokens) // BLOCK_SIZE))), forward.loaded
    kv = KVCache(loaded.layout(BLOCK_SIZE), len(table), loaded.device)
    half = len(ids) // 2
    run_step(forward, kv, Plan((), (Chunk(0, 0, tuple(ids[:half]), table),)))
    answer, start, new = [], half, tuple(ids[half:])
    for _ in range(num_tokens):
        (token,) = run_step(forward, kv, Plan((), (Chunk(0, start, new, table, 1),)))[0]
        start, new = start + len(new), (token,)
        answer.append(token)
    return answer
