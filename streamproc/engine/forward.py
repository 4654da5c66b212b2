"""One step's chunks through the model: by torch, on any device, or by our own code on the CPU.

Both write exactly the cells that the chunks name and give the greedy tokens of every chunk that samples. Which one runs
is decided once, at start, and is part of the fingerprint: they agree in all but the last bits.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import transformers

from streamproc.engine.attention import KEY_TILE
from streamproc.engine.batch import SPAN_ROWS, Geometry, build_batch
from streamproc.engine.chip import kernel_facts
from streamproc.engine.kv_cache import Copies, KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.masks import Masks, unpacked
from streamproc.engine.shortage import lacks_memory
from streamproc.errors import OutOfMemory
from streamproc.schedule.plan import STUCK, Chunk, Plan, verify

CHECK_TOKENS = 24


class Forward(Protocol):
    """A model that computes steps."""

    loaded: LoadedModel
    num_checked: int        # tokens of the sequence that tells whether it is exact: enough to meet all its ways

    @property
    def name(self) -> str:
        """What computes, for people."""
        ...

    @property
    def facts(self) -> tuple[str, ...]:
        """Everything of the computation, besides the model, that a cell's bits depend on; asked in a thread that
        computes.
        """
        ...

    def run(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Copies = ()
            ) -> dict[int, tuple[int, ...]]:
        """Copy whole blocks, then compute -> the tokens that follow every chunk with samples (plan.verify). `chunks` is
        not empty; `masks` is called once the layers are computed.
        """
        ...

    def cells(self, kv: KVCache, block_table: Sequence[int], num_tokens: int) -> torch.Tensor:
        """A copy of a sequence's K and V: [layers, 2, kv_heads, num_tokens, head_dim]."""
        ...

    def release(self) -> None:
        """Free what of the loaded model it does not need; nothing else can compute with that model any more."""
        ...

    def close(self) -> None:
        """End its threads; harmless when repeated."""
        ...


def run_step(forward: Forward, kv: KVCache, plan: Plan, masks: Masks | None = None) -> dict[int, tuple[int, ...]]:
    """One step -> the tokens that follow, by sequence, as plan.Flight says, without those that need no choice. `masks`
    are those of the chunks' constraints.

    Raises OutOfMemory, or StreamprocError where the model gives no number.
    """
    with computing(forward, plan):
        if plan.chunks:
            return forward.run(kv, plan.chunks, masks, plan.copies)
        kv.copy(plan.copies)
        return {}


@contextmanager
def computing(forward: Forward, plan: Plan) -> Iterator[None]:
    """A step of this plan, or its beginning; raises OutOfMemory where there is not enough. What the step has taken is
    free by then: less is tried while the error is still known.
    """
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, MemoryError) as problem:
        if lacks_memory(problem):
            traceback.clear_frames(problem.__traceback__)
            device = forward.loaded.device.type
            raise OutOfMemory(f"out of memory on {device} in a step of {plan.num_tokens} tokens; "
                              "lower engine.step_tokens or engine.kv_bytes, or use a smaller model") from problem
        raise


class TorchForward:
    """transformers' own model, with our attention function in it."""

    def __init__(self, loaded: LoadedModel, row_multiple: int) -> None:
        self.loaded = loaded
        self.row_multiple = row_multiple
        self.name = "torch"
        self.num_checked = CHECK_TOKENS

    @property
    def facts(self) -> tuple[str, ...]:
        return (torch.__version__, transformers.__version__, str(KEY_TILE), str(SPAN_ROWS), str(self.row_multiple),
                *kernel_facts(self.loaded.device.type))

    def run(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Copies = ()
            ) -> dict[int, tuple[int, ...]]:
        kv.copy(copies)
        geometry = Geometry(self.loaded.shapes.num_heads, frozenset(self.loaded.shapes.windows), self.row_multiple)
        batch = build_batch(chunks, kv, geometry)
        logits = self.loaded.model(input_ids=batch.token_ids, position_ids=batch.positions, use_cache=False,
                                   logits_to_keep=batch.sampled_rows, streamproc_step=batch.step).logits
        logits = logits[0, :batch.num_samples]
        best = logits.max(-1)
        self.loaded.require_finite(bool(torch.isfinite(best.values).all()))
        samples = best.indices.tolist()
        for i, mask in enumerate(masks() if masks else ()):
            if mask is not None:
                allowed = torch.from_numpy(unpacked(mask, logits.shape[-1])).to(logits.device)
                samples[i] = int(logits[i].masked_fill(~allowed, -torch.inf).argmax()) if allowed.any() else STUCK
        return verify(chunks, iter(samples))

    def cells(self, kv: KVCache, block_table: Sequence[int], num_tokens: int) -> torch.Tensor:
        return kv.gather(block_table).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[:, :, :, :num_tokens]

    def release(self) -> None:
        """It needs all of it."""

    def close(self) -> None:
        """It has no threads of its own."""
