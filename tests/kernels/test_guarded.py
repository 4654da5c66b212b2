"""The guard bands themselves: what they surround, and what they notice."""

import pytest
import torch
from guarded import check, guarded, poisoned

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32,
          torch.int64]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_guarded_tensor_is_equal_and_laid_out_alike(dtype: torch.dtype) -> None:
    strided = torch.arange(60).view(5, 12)[:, 2:7].to(dtype).contiguous()
    wide = torch.zeros(5, 12, dtype=torch.float32).to(dtype)[:, 2:7].copy_(strided)
    for tensor in (strided, wide):
        view = guarded(tensor)
        assert view.dtype == dtype
        assert view.stride() == tensor.stride()
        assert torch.equal(view.cpu().float(), tensor.float())
        assert not view.data_ptr() % 16


@pytest.mark.parametrize("offset", [-1, 5, 17])
def test_a_write_beside_a_tensor_is_noticed(offset: int) -> None:
    view = guarded(torch.zeros(2, 12)[:, :5])
    view.as_strided((1,), (1,), view.storage_offset() + offset).fill_(0)
    with pytest.raises(AssertionError, match="guard band"):
        check()


def test_writes_into_a_tensor_are_its_own_affair() -> None:
    guarded(torch.zeros(2, 12)[:, :5]).fill_(1)
    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_read_beside_a_tensor_cannot_pass_for_data(dtype: torch.dtype) -> None:
    view = guarded(torch.zeros(3, dtype=torch.float32).to(dtype))
    beside = view.as_strided((5,), (1,), view.storage_offset() - 1).cpu()
    for found in (beside[0], beside[-1], poisoned(2, dtype=dtype).cpu()[1]):
        assert found.float().isnan() if dtype.is_floating_point else found > 0
