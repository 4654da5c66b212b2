import pytest
import torch

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


def test_the_null_block_is_not_for_use(kv: KVCache) -> None:
    with pytest.raises(AssertionError, match="outside the pool"):
        kv.gather([kv.null_block])
    assert not kv.blocks[kv.null_block].any()


def test_bytes_are_counted_right(kv: KVCache) -> None:
    assert LAYOUT.bytes_per_token == 3 * 2 * 2 * 8 * 2
    assert kv.blocks.nbytes == 11 * LAYOUT.block_bytes


def test_all_layers_of_a_block_are_one_piece(kv: KVCache) -> None:
    assert kv.blocks[4].is_contiguous()
    assert kv.cells.data_ptr() == kv.runs.data_ptr() == kv.blocks.data_ptr()
