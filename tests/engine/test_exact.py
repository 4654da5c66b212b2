"""The check at start must see what is not exact."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from streamproc.engine import exact
from streamproc.engine.attention import Heads, PagedStep
from streamproc.engine.choice import torch_forward
from streamproc.engine.loaded import LoadedModel


def measure(loaded: LoadedModel) -> tuple[int, bool]:
    with torch.inference_mode():
        forward, is_exact = torch_forward(loaded, 16)
    return forward.row_multiple, is_exact


def test_a_matmul_that_depends_on_the_number_of_rows_needs_more_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = F.linear

    def fussy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, weight, bias) * (1 if len(x) % 16 == 0 else 1.001)

    monkeypatch.setattr(F, "linear", fussy)
    assert exact.find_row_multiple(torch.nn.Linear(32, 32, bias=False)) == 16


def test_no_padding_at_all_is_said(monkeypatch: pytest.MonkeyPatch, load: Callable[..., LoadedModel]) -> None:
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias=None: linear(x, weight, bias) * (1 + x.numel() * 1e-4))
    assert measure(load("llama", torch.float32)) == (4, False)


def test_an_attention_that_depends_on_its_company_is_seen(monkeypatch: pytest.MonkeyPatch,
                                                          load: Callable[..., LoadedModel]) -> None:
    attend = PagedStep.attend

    def fussy(step: PagedStep, heads: Heads) -> torch.Tensor:
        return attend(step, heads) + heads.query.shape[1] * 1e-3

    monkeypatch.setattr(PagedStep, "attend", fussy)
    loaded = load("llama", torch.float32)
    assert not exact.attention_is_exact(loaded.shapes, next(loaded.model.parameters()), 4, 16)


def test_experts_are_not_claimed_to_be_exact(load: Callable[..., LoadedModel]) -> None:
    multiple, is_exact = measure(dataclasses.replace(load("llama", torch.float32), has_experts=True))
    assert multiple in exact.MULTIPLES
    assert not is_exact
