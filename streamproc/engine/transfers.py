"""Blocks out of the pool and into it, as a plan names them: saves, then loads, before its copies and its chunks.

On a GPU they go over a stream of their own, beside the step: one copy for each block, which is one piece there, in
pinned memory and on disk. The step waits for them only where it needs or overwrites what is on its way.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from streamproc.engine.kv_cache import KVCache
from streamproc.schedule.plan import Plan

Saved = dict[bytes, np.ndarray]     # [bytes of a block] by name
NOTHING: Saved = {}


class Transfers:
    """Of one pool; one caller at a time, in the thread that computes."""

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv
        self._stream = torch.cuda.Stream(kv.data.device) if kv.data.is_cuda else None
        self._leaving: tuple[Any, frozenset[int]] | None = None     # the newest saves: an event, and their blocks

    def begin(self, plan: Plan) -> Callable[[], Saved]:
        """-> what waits for the saves and gives their bytes."""
        self._let_leave(plan)
        if not (plan.saves or plan.loads):
            return lambda: NOTHING
        if self._stream is None:
            saved = {name: self._kv.read(block_id) for block_id, name in plan.saves}
            for block_id, data in plan.loads:
                self._kv.write(block_id, data)
            return lambda: saved
        return self._begin_aside(plan)

    def _begin_aside(self, plan: Plan) -> Callable[[], Saved]:
        assert self._stream is not None, "a stream for a pool on a GPU"
        step = torch.cuda.current_stream()
        self._stream.wait_stream(step)
        with torch.cuda.stream(self._stream):
            held = {name: self._saved(block_id) for block_id, name in plan.saves}
            for block_id, data in plan.loads:
                self._kv.write(block_id, data)
            done = self._stream.record_event()
        if plan.saves:
            self._leaving = done, frozenset(block for block, _ in plan.saves)
        if plan.loads or not written(plan, self._kv.layout.block_size).isdisjoint(block for block, _ in plan.saves):
            step.wait_event(done)

        def wait() -> Saved:
            done.synchronize()
            return {name: data.numpy() for name, data in held.items()}

        return wait

    def _let_leave(self, plan: Plan) -> None:
        """A step may be begun before the saves of the one before it are done: it does not overwrite their blocks."""
        if self._leaving is None:
            return
        done, blocks = self._leaving
        if done.query():
            self._leaving = None
        elif not written(plan, self._kv.layout.block_size).isdisjoint(blocks):
            torch.cuda.current_stream().wait_event(done)

    def _saved(self, block_id: int) -> torch.Tensor:
        """On its way to memory that torch takes back, once nobody holds its bytes any more."""
        data = torch.empty(self._kv.layout.block_bytes, dtype=torch.uint8, pin_memory=True)
        return data.copy_(self._kv.data[block_id], non_blocking=True)


def written(plan: Plan, block_size: int) -> set[int]:
    """Blocks that a step overwrites: those it loads, copies to, or computes cells of."""
    blocks = {block for block, _ in plan.loads} | {destination for _, destination in plan.copies}
    for chunk in plan.chunks:
        end = chunk.start + len(chunk.token_ids)
        blocks.update(chunk.block_table[chunk.start // block_size:-(-end // block_size)])
    return blocks

