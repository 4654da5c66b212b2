"""Blocks are moved byte by byte, whatever the bytes mean, and nothing else of the pool changes."""

import pytest
import torch
from guarded import guarded, poisoned

from streamproc.kernels import reference
from streamproc.kernels.blocks import WORDS, copy_blocks, gather_blocks, scatter_blocks

SIZES = [16, 48, 8 * WORDS, 8 * WORDS + 16, 20000]


def bytes_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def ids(*values: int) -> torch.Tensor:
    return guarded(torch.tensor(values, dtype=torch.int32))


@pytest.mark.parametrize("size", SIZES)
def test_gathered_blocks(size: int) -> None:
    pool, order = guarded(bytes_of(6, size)), ids(5, 0, 3, 3)
    out = poisoned(4, size, dtype=torch.uint8)
    assert gather_blocks(pool, order, out) is out
    assert torch.equal(out, torch.stack([pool[5], pool[0], pool[3], pool[3]]))
    assert torch.equal(gather_blocks(pool, order), reference.gather_blocks(pool, order))


@pytest.mark.parametrize("size", SIZES)
def test_scattered_blocks(size: int) -> None:
    before, blocks, order = bytes_of(6, size), guarded(bytes_of(2, size, seed=1)), ids(4, 1)
    pool, also = guarded(before), before.clone()
    scatter_blocks(pool, order, blocks)
    reference.scatter_blocks(also, order.cpu(), blocks.cpu())
    before[4], before[1] = blocks.cpu()
    assert torch.equal(pool.cpu(), before)
    assert torch.equal(also, before)


@pytest.mark.parametrize("size", SIZES)
def test_copied_blocks(size: int) -> None:
    before = bytes_of(6, size)
    pool, also, sources, destinations = guarded(before), before.clone(), ids(0, 0, 5), ids(1, 4, 3)
    copy_blocks(pool, sources, destinations)
    reference.copy_blocks(also, sources.cpu(), destinations.cpu())
    before[1], before[4], before[3] = before[0].clone(), before[0].clone(), before[5].clone()
    assert torch.equal(pool.cpu(), before)
    assert torch.equal(also, before)


def test_what_was_gathered_can_be_put_back_into_blocks_that_lie_apart() -> None:
    memory = guarded(bytes_of(5, 96))
    pool, order = memory[:, 16:80], ids(2, 4)
    before, blocks = memory.clone(), gather_blocks(memory[:, 16:80], order)
    pool[order] = 0
    scatter_blocks(pool, order, blocks)
    assert torch.equal(memory, before)


def test_no_blocks() -> None:
    pool = guarded(bytes_of(3, 32))
    assert gather_blocks(pool, ids()).shape == (0, 32)
    scatter_blocks(pool, ids(), bytes_of(0, 32))
    copy_blocks(pool, ids(), ids())
    assert torch.equal(pool.cpu(), bytes_of(3, 32))


def test_blocks_that_cannot_be_moved_16_bytes_at_a_time_are_refused() -> None:
    with pytest.raises(AssertionError):
        gather_blocks(guarded(bytes_of(3, 40)), ids(0))
