"""The best token: the lowest of equals, of those that the type of an answer allows."""

import numpy as np
import pytest
import torch
from guarded import guarded

from streamproc.engine.masks import unpacked
from streamproc.kernels import reference
from streamproc.kernels.argmax import PART, STUCK, greedy
from streamproc.schedule import plan

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VOCABS = [1, 31, 33, PART - 1, PART, PART + 1, 3 * PART + 17]


def some(rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits with many equals."""
    generator = torch.Generator().manual_seed(vocab)
    return torch.randint(-40, 9, (rows, vocab), generator=generator).div(4).to(dtype)


def words(vocab: int, *allowed: list[int]) -> torch.Tensor:
    rows = np.zeros((len(allowed), -(-vocab // 32)), np.uint32)
    for row, ids in zip(rows, allowed, strict=True):
        for token in ids:
            row[token // 32] |= np.uint32(1 << token % 32)
    return torch.from_numpy(rows.view(np.int32))


def lowest(logits: torch.Tensor, is_allowed: list[bool] | None = None) -> tuple[int, float]:
    """Of one row, token by token."""
    best = (STUCK, -float("inf"))
    for token, logit in enumerate(logits.tolist()):
        if (is_allowed is None or is_allowed[token]) and (best[0] == STUCK or logit > best[1]):
            best = (token, logit)
    return best


def both(*arguments: torch.Tensor) -> list[tuple[int, float]]:
    """Of every row, what kernel and reference agree on."""
    ids, best = greedy(*arguments)
    also = reference.greedy(*(argument.cpu() for argument in arguments))
    assert (ids.dtype, best.dtype) == (torch.int32, torch.float32) == (also[0].dtype, also[1].dtype)
    assert torch.equal(ids.cpu(), also[0])
    assert torch.equal(best.cpu(), also[1])
    return list(zip(ids.tolist(), best.tolist(), strict=True))


def test_stuck_is_the_plans() -> None:
    assert STUCK == plan.STUCK


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABS)
def test_the_lowest_of_the_largest(vocab: int, dtype: torch.dtype) -> None:
    logits = guarded(some(3, vocab, dtype))
    assert both(logits) == [lowest(row) for row in logits]


@pytest.mark.parametrize("vocab", VOCABS)
def test_only_what_is_allowed(vocab: int) -> None:
    logits = guarded(some(5, vocab, torch.bfloat16))
    generator = torch.Generator().manual_seed(1)
    allowed = [torch.randperm(vocab, generator=generator)[:1 + vocab // 3].tolist(), [vocab - 1], []]
    mask, masked = guarded(words(vocab, *allowed)), guarded(torch.tensor([1, -1, 0, 2, 0], dtype=torch.int32))
    rows = [unpacked(row.cpu().numpy().view(np.uint32), vocab).tolist() for row in mask]
    expected = [lowest(logits[i], rows[m] if m >= 0 else None) for i, m in enumerate(masked.tolist())]
    assert both(logits, mask, masked) == expected
    assert expected[3] == (STUCK, -float("inf"))
    assert expected[0][0] == vocab - 1


def test_what_is_allowed_may_be_minus_infinity() -> None:
    logits = guarded(torch.full((2, PART + 40), -float("inf")))
    logits[1] = 1.0
    mask, masked = guarded(words(PART + 40, [PART + 7, PART + 9])), guarded(torch.zeros(2, dtype=torch.int32))
    assert both(logits, mask, masked) == [(PART + 7, -float("inf")), (PART + 7, 1.0)]
    assert both(logits) == [(0, -float("inf")), (0, 1.0)]


@pytest.mark.parametrize("place", [0, 5, PART + 3])
def test_one_that_is_not_a_number_is_never_missed(place: int) -> None:
    logits = guarded(some(3, PART + 40, torch.bfloat16))
    logits[1, place] = float("nan")
    mask, masked = guarded(words(PART + 40, [5, 6])), guarded(torch.zeros(3, dtype=torch.int32))
    for arguments in ((logits,), (logits, mask, masked)):
        for _, best in (greedy(*arguments), reference.greedy(*(argument.cpu() for argument in arguments))):
            assert best.isnan().tolist() == [False, True, False]


def test_rows_may_lie_apart_and_be_none() -> None:
    logits = guarded(some(4, 300, torch.float32)[:, 7:200])
    mask = guarded(torch.cat([words(193, [3, 192], [8]), words(193, [1], [2])], 1)[:, :7])
    masked = guarded(torch.tensor([0, 1, -1, 0], dtype=torch.int32))
    assert both(logits, mask, masked)[1][0] == 8
    assert [tensor.shape for tensor in greedy(logits[:0])] == [(0,), (0,)]
