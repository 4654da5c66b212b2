"""Our engine, step by step, without the loop around it: as bench_forward.py drives it."""

from collections.abc import Sequence
from typing import Any

import torch
from asking import Asking

from peers.subject import OURS, PORTION, Ids, make_model
from streamproc.engine.choice import cpu_forward
from streamproc.engine.forward import run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel, describe
from streamproc.errors import Unavailable
from streamproc.schedule.plan import Chunk, Plan

BLOCK_SIZE = 16


def load(shape: dict[str, Any], weights: dict[str, torch.Tensor], path: Any) -> LoadedModel:
    return describe(make_model(shape, weights, "streamproc"), path, "random")


class Ours(Asking):
    """One sequence in blocks of its own. Raises Unavailable where our own code was not compiled."""

    name = OURS

    def __init__(self, loaded: LoadedModel, num_tokens: int, threads: int) -> None:
        with torch.inference_mode():
            forward = cpu_forward(loaded, BLOCK_SIZE, threads)
        if forward is None:
            raise Unavailable("our own code was not compiled here; install the package where a C++ compiler is")
        self.forward = forward
        self.size = 0
        self.table = tuple(range(-(-num_tokens // BLOCK_SIZE)))
        self.kv = KVCache(loaded.layout(BLOCK_SIZE), len(self.table), loaded.device)

    def grow(self, ids: Sequence[int]) -> None:
        assert len(ids) <= PORTION
        self._step(self.size, ids, 0)
        self.size += len(ids)

    def cut(self, num_tokens: int) -> None:
        self.size = num_tokens      # cells beyond it are written again

    def close(self) -> None:
        self.forward.close()

    def _step(self, start: int, ids: Sequence[int], num_samples: int) -> Ids:
        found = run_step(self.forward, self.kv, Plan((), (Chunk(0, start, tuple(ids), self.table, num_samples),)))
        return tuple(found.get(0, ()))
