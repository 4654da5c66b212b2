"""Attention over paged KV inside unchanged transformers models, the same bits for a row whatever the batch.

Registered with transformers under the name "streamproc"; the step's state travels through the forward's keyword
arguments as `streamproc_step`. One call per layer and group of spans:

    queries   [spans, kv_heads, groups * rows, head_dim]   the GQA groups folded into the rows
    keys      [spans, kv_heads, keys, head_dim]            gathered blocks, a multiple of KEY_TILE
    mask      [spans, 1, groups * rows, keys]              0 where a row sees a key, else -inf

What makes a row's bits its own: the keys of a row are cut into tiles at absolute positions (multiples of KEY_TILE), a
tile that is masked as a whole adds exactly nothing, and the number of query rows is a multiple that the machine's
matmul is known to be blind to (exact.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from streamproc.engine.kv_cache import KVCache

NAME = "streamproc"
KEY_TILE = 512
LOWEST = -1e30      # the maximum of no scores


@dataclass(frozen=True, slots=True)
class Heads:
    """One layer's call of the attention interface."""

    layer: int
    query: torch.Tensor            # [heads, rows, head_dim]
    key: torch.Tensor              # [kv_heads, rows, head_dim]
    value: torch.Tensor            # [kv_heads, rows, head_dim]
    scaling: float | None
    window: int | None
    extras: Mapping[str, Any]      # whatever else the model hands its attention
    softcap: float | None = None   # of the scaled scores, Gemma 2's


class Step(Protocol):
    """What a forward does at each layer's attention."""

    def attend(self, heads: Heads) -> torch.Tensor:
        """-> [rows, heads, head_dim]"""
        ...


@dataclass(frozen=True, slots=True)
class SpanGroup:
    """Spans of query rows that are attended in one call: equal numbers of padded rows and of keys."""

    num_spans: int
    query_rows: torch.Tensor       # [spans * rows] rows of the packed batch; padding repeats a span's last row
    key_runs: torch.Tensor         # [spans * 2 * kv_heads * blocks] rows of KVCache.runs, for layer 0
    mask: torch.Tensor             # [spans, 1, groups * rows, keys]


@dataclass(frozen=True, slots=True)
class Reach:
    """All query rows of a step under one window."""

    groups: tuple[SpanGroup, ...]
    order: torch.Tensor            # [packed rows] where each packed row lies in the groups' concatenated output


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Writes a step's K and V into their cells, then attends over the cells of each sequence."""

    kv: KVCache
    num_rows: int                              # rows that belong to chunks; the rest is padding, never written
    write_cells: torch.Tensor                  # [2 * kv_heads * num_rows] rows of KVCache.cells, for layer 0
    reaches: Mapping[int | None, Reach]        # by window

    def attend(self, heads: Heads) -> torch.Tensor:
        self._write(heads)
        reach = self.reaches[heads.window]
        parts = [self._attend_group(heads, group) for group in reach.groups]
        return torch.cat(parts).index_select(0, reach.order)

    def _write(self, heads: Heads) -> None:
        new = torch.stack((heads.key[:, :self.num_rows], heads.value[:, :self.num_rows]))
        offset = heads.layer * self.kv.layer_stride * self.kv.layout.block_size
        self.kv.cells.index_copy_(0, self.write_cells + offset, new.reshape(-1, new.shape[-1]))

    def _attend_group(self, heads: Heads, group: SpanGroup) -> torch.Tensor:
        """-> [spans * rows, heads, head_dim]"""
        spans, kv_heads, head_dim = group.num_spans, heads.key.shape[0], heads.query.shape[-1]
        rows, num_groups = len(group.query_rows) // spans, heads.query.shape[0] // kv_heads
        query = heads.query.index_select(1, group.query_rows).view(kv_heads, num_groups, spans, rows, head_dim)
        query = query.permute(2, 0, 1, 3, 4).reshape(spans, kv_heads, num_groups * rows, head_dim)
        runs = self.kv.runs.index_select(0, group.key_runs + heads.layer * self.kv.layer_stride)
        cells = runs.view(spans, 2, kv_heads, -1, head_dim)
        out = attended(query, cells[:, 0], cells[:, 1], group.mask, heads)
        out = out.view(spans, kv_heads, num_groups, rows, head_dim).permute(0, 3, 1, 2, 4)
        return out.reshape(spans * rows, kv_heads * num_groups, head_dim)


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
             heads: Heads) -> torch.Tensor:
    """Attention as torch computes it, or ours where the scores are capped; the shapes stand at the top."""
    if heads.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=heads.scaling)
    scaling = query.shape[-1] ** -0.5 if heads.scaling is None else heads.scaling
    return capped(query, (key, value), mask, scaling, heads.softcap)


def capped(query: torch.Tensor, cells: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor, scaling: float,
           softcap: float) -> torch.Tensor:
    """softmax(softcap * tanh(scores / softcap) + mask) @ V in float32, over one tile of keys after the other."""
    key, value = (part.float() for part in cells)
    scaled, like = query.float() * scaling, (*query.shape[:-1], 1)
    highest, sums = query.new_full(like, LOWEST, dtype=torch.float32), query.new_zeros(like, dtype=torch.float32)
    out = torch.zeros_like(scaled)
    for first in range(0, key.shape[-2], KEY_TILE):
        tile = slice(first, first + KEY_TILE)
        scores = torch.tanh(scaled @ key[..., tile, :].transpose(-1, -2) / softcap) * softcap + mask[..., tile]
        now = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, rescale = torch.exp(scores - now), torch.exp(highest - now)
        sums = sums * rescale + weights.sum(-1, keepdim=True)
        out = out * rescale + weights @ value[..., tile, :]
        highest = now
    return (out / sums).to(query.dtype)


def attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any,
              **kwargs: Any) -> tuple[torch.Tensor, None]:
    """transformers' interface: [1, heads, rows, head_dim] each -> ([1, rows, heads, head_dim], None)."""
    step: Step = kwargs.pop("streamproc_step")
    heads = Heads(module.layer_idx, query[0], key[0], value[0], kwargs.pop("scaling", None),
                  kwargs.pop("sliding_window", None), kwargs, kwargs.pop("softcap", None))
    return step.attend(heads).unsqueeze(0), None


def no_mask(*_: Any, **__: Any) -> None:
    """The step knows what each row sees."""


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, no_mask)
