"""Steps through forward.cpp."""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import torch
import transformers

from streamproc.engine.cpu.library import library_fingerprint, library_kind
from streamproc.engine.cpu.program import Program
from streamproc.engine.cpu.tables import CHUNK, Step
from streamproc.engine.kv_cache import Copies, KVCache
from streamproc.engine.loaded import LoadedModel, free_parameters
from streamproc.engine.masks import Masks
from streamproc.engine.memory import give_back
from streamproc.schedule.plan import Chunk, verify

NUM_CHECKED = 24        # as many as torch's: it has one way to compute


class CpuForward:
    """forward.cpp: Python lays out a step, nothing is done in it for each layer.

    Without a team it may be called from several threads, on different chunks; a team has one caller at a time.
    """

    def __init__(self, code: ctypes.CDLL, loaded: LoadedModel, program: Program, threads: int) -> None:
        self.library = code
        self.loaded = loaded
        self.program = program
        self.name = f"own code, {library_kind()}"
        self.num_checked = NUM_CHECKED
        self.team = self.library.streamproc_team(threads)

    @property
    def facts(self) -> tuple[str, ...]:
        return (library_fingerprint(), torch.__version__, transformers.__version__)     # they fill the rotary tables

    def run(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Copies = ()
            ) -> dict[int, tuple[int, ...]]:
        kv.copy(copies)
        best, logits = self.best(kv, chunks, masks)
        self.loaded.require_finite(bool(np.isfinite(logits).all()))
        return verify(chunks, iter(best.tolist()))

    def best(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The greedy tokens of all samples, and their logits; NaN where one is not finite."""
        self.program.reserve(max(chunk.start + len(chunk.token_ids) for chunk in chunks))
        assert kv.layout.block_size == self.program.model.block_size, "a cache of other blocks"
        tables = np.fromiter((block for chunk in chunks for block in chunk.block_table), np.int32)
        token_ids = np.fromiter((token for chunk in chunks for token in chunk.token_ids), np.int32)
        assert ((token_ids >= 0) & (token_ids < self.loaded.vocab_size)).all(), "a token outside the vocabulary"
        described, table, row = np.empty(len(chunks), CHUNK), tables.ctypes.data, 0
        for i, chunk in enumerate(chunks):
            described[i] = (table, chunk.start, len(chunk.token_ids), row, chunk.num_samples)
            table += len(chunk.block_table) * tables.itemsize
            row += len(chunk.token_ids)
        num_samples = sum(chunk.num_samples for chunk in chunks)
        best, logits = np.empty(num_samples, np.int32), np.empty(num_samples, np.float32)
        rows = np.empty((num_samples, self.program.model.hidden), np.float32)
        step = Step(kv.blocks.data_ptr(), token_ids.ctypes.data, described.ctypes.data, best.ctypes.data,
                    logits.ctypes.data, rows.ctypes.data, None, row, len(chunks))
        self._call(self.library.streamproc_layers, step)
        if num_samples:
            allowed = masks() if masks else []
            pointers = np.array([0 if mask is None else mask.ctypes.data for mask in allowed], np.uintp)
            step.masks = pointers.ctypes.data if allowed else None
            self._call(self.library.streamproc_sample, step)
        return best, logits

    def _call(self, function: Callable[..., int], step: Step) -> None:
        if function(ctypes.addressof(self.program.model), ctypes.addressof(step), self.team):
            raise MemoryError

    def cells(self, kv: KVCache, block_table: Sequence[int], num_tokens: int) -> torch.Tensor:
        blocks, layout = kv.gather(block_table), kv.layout      # as in forward.cpp
        pair = 2 if layout.dtype == torch.bfloat16 else 1
        size, dim = layout.block_size, layout.head_dim
        k = blocks[:, :, 0].reshape(*blocks.shape[:2], -1, dim // pair, size, pair).permute(1, 2, 0, 4, 3, 5)
        v = blocks[:, :, 1].reshape(*blocks.shape[:2], -1, size // pair, dim, pair).permute(1, 2, 0, 3, 5, 4)
        parts = (part.reshape(layout.num_layers, layout.num_kv_heads, -1, dim) for part in (k, v))
        return torch.stack(tuple(parts), 1)[:, :, :, :num_tokens]

    def release(self) -> None:
        """Free the model's own weights: nothing of the program lies in them."""
        free_parameters(self.loaded.model)
        give_back()

    def close(self) -> None:
        """End its threads; harmless when repeated."""
        self.library.streamproc_disband(self.team)
        self.team = None
