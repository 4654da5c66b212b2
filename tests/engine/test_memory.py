"""Large tensors of the CPU."""

import pytest
import torch

from streamproc.engine.memory import HUGE, copied, zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 40_000])
def test_they_are_zero_whole_and_written_like_any_other(rows: int, dtype: torch.dtype) -> None:
    found = zeros((rows, 33), dtype)
    assert (found.shape, found.dtype, found.is_contiguous()) == ((rows, 33), dtype, True)
    assert not found.any()
    assert found.nbytes < HUGE or found.data_ptr() % HUGE == 0
    found.fill_(3)
    assert torch.equal(found, torch.full((rows, 33), 3, dtype=dtype))


def test_a_copy_outlives_what_it_was_made_of() -> None:
    given = torch.randn(700, 2000)
    expected = given.t().clone(memory_format=torch.contiguous_format)
    copy = copied(given.t())
    given.zero_()
    assert torch.equal(copy, expected)


def test_memory_that_is_not_there_is_said_as_torch_says_it() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        zeros((2**50,), torch.float32)
