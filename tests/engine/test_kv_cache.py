from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from streamproc.engine import kv_cache
from streamproc.engine.kv_cache import KVCache, Layout

LAYOUT = Layout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype=torch.bfloat16)


@pytest.fixture
def kv() -> KVCache:
    kv = KVCache(LAYOUT, 10, torch.device("cpu"))
    kv.blocks[:-1] = torch.randn(10, *LAYOUT.block_shape)
    return kv


def test_a_round_trip_keeps_every_bit(kv: KVCache) -> None:
    before = kv.gather([7, 2, 5])
    kv.blocks[[7, 2, 5]] = 0
    kv.scatter([7, 2, 5], before)
    assert torch.equal(kv.gather([7, 2, 5]), before)
    assert torch.equal(kv.gather([5]), before[2:])


def test_a_scatter_touches_no_other_block(kv: KVCache) -> None:
    others = [block for block in range(10) if block not in (1, 8)]
    before = kv.gather(others)
    kv.scatter([8, 1], torch.zeros(2, *LAYOUT.block_shape, dtype=LAYOUT.dtype))
    assert torch.equal(kv.gather(others), before)
    assert not kv.gather([1, 8]).any()


def test_copies_read_every_source_before_they_write(kv: KVCache) -> None:
    first, second = kv.gather([1]), kv.gather([2])
    kv.copy([(1, 2), (2, 3)])
    assert torch.equal(kv.gather([2, 3]), torch.cat([first, second]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_was_read_is_written_bit_for_bit(dtype: torch.dtype) -> None:
    """Any bits, those of NaNs and of denormal numbers too."""
    layout = replace(LAYOUT, dtype=dtype)
    kv = KVCache(layout, 10, torch.device("cpu"))
    bits = torch.randint(0, 256, (10, layout.block_bytes), dtype=torch.uint8)
    kv.blocks[:-1].view(10, -1).view(torch.uint8).copy_(bits)
    data = [kv.read(block_id) for block_id in range(10)]
    assert [bytes(each) for each in data] == [bytes(each.numpy()) for each in bits]
    kv.blocks[:] = 0
    for block_id in (7, 2):
        kv.write(block_id, data[block_id])
    found = kv.blocks.view(11, -1).view(torch.uint8)
    assert torch.equal(found[[7, 2]], bits[[7, 2]])
    assert not found[[0, 1, 3, 4, 5, 6, 8, 9, 10]].any()


def test_what_was_read_does_not_change_with_the_pool(kv: KVCache) -> None:
    data = kv.read(3)
    before = bytes(data)
    kv.blocks[:] = 1
    assert bytes(data) == before
    kv.write(4, data)
    kv.blocks[:] = 2
    assert bytes(data) == before


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytes(data)), np.asarray])
def test_any_buffer_is_written_also_one_that_cannot_be(kind: Callable[[Any], Any], kv: KVCache) -> None:
    data = kv.read(6)
    kv.write(1, kind(data))
    assert torch.equal(kv.gather([1]), kv.gather([6]))


def test_a_buffer_of_another_size_is_refused(kv: KVCache) -> None:
    before = kv.gather(range(10))
    for num_bytes in (LAYOUT.block_bytes - 1, LAYOUT.block_bytes + 1, 1, 0):
        with pytest.raises(AssertionError, match="bytes for a block of"):
            kv.write(1, bytes(num_bytes))
    assert torch.equal(kv.gather(range(10)), before)


def test_the_null_block_is_not_for_use(kv: KVCache) -> None:
    with pytest.raises(AssertionError, match="outside the pool"):
        kv.gather([kv.null_block])
    with pytest.raises(AssertionError, match="outside the pool"):
        kv.read(kv.null_block)
    with pytest.raises(AssertionError, match="outside the pool"):
        kv.write(kv.null_block, kv.read(0))
    assert not kv.blocks[kv.null_block].any()


def test_bytes_are_counted_right(kv: KVCache) -> None:
    assert LAYOUT.bytes_per_token == 3 * 2 * 2 * 8 * 2
    assert kv.blocks.nbytes == 11 * LAYOUT.block_bytes


def test_all_layers_of_a_block_are_one_piece(kv: KVCache) -> None:
    assert kv.blocks[4].is_contiguous()
    assert kv.cells.data_ptr() == kv.runs.data_ptr() == kv.blocks.data_ptr()


@pytest.mark.parametrize("bad", [10, -1])
def test_a_sequences_blocks_are_checked_whatever_was_checked_before(kv: KVCache, bad: int) -> None:
    kv.check(1, (2, 3))
    kv.check(1, (2, 3, 4))
    for table in ((2, 3, 4, bad), (bad, 3, 4), (2, bad), (5, 6, 7, 8, bad)):
        with pytest.raises(AssertionError, match="outside the pool"):
            kv.check(1, table)
    with pytest.raises(AssertionError, match="outside the pool"):
        kv.check(2, (2, 3, bad))
    kv.check(1, (5,))
    with pytest.raises(AssertionError, match="outside the pool"):
        kv.check(1, (5, bad))


def test_what_is_remembered_of_checked_blocks_is_bounded(kv: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "MOST_CHECKED", 20)
    for seq_id in range(100):
        kv.check(seq_id, (1, 2, 3))
    assert len(kv._checked) < 10
