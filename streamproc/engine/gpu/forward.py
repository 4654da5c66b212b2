"""Steps by Triton's kernels on a GPU; in CUDA graphs, where steps of that size come again.

A step is one copy of numbers to the device, the layers, the choice of tokens, and one copy back. Kernels are handed in
(`ops`): Triton's on a GPU, and in its interpreter; their references in plain torch on the CPU.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from streamproc.engine.gpu.batch import (
    ALIGNED,
    NO_SAMPLES,
    Batch,
    Bucket,
    Inputs,
    Places,
    feed,
    fill,
    graph_bucket,
    inputs,
    make_batch,
    pairs,
    places,
    size_with,
)
from streamproc.engine.gpu.graphs import Graphs
from streamproc.engine.gpu.parallel import Gathered
from streamproc.engine.gpu.program import Affine, GpuLayer, GpuProgram
from streamproc.engine.gpu.staging import Download, Staging
from streamproc.engine.kv_cache import Copies, KVCache
from streamproc.engine.loaded import LoadedModel, free_parameters
from streamproc.engine.masks import Masks, Rows
from streamproc.kernels.attention_configs import attention_of
from streamproc.kernels.configs import config_of
from streamproc.kernels.tables import Tables
from streamproc.schedule.plan import STUCK, Chunk, verify

GRAPH_ROWS = 512        # larger steps compute for longer than they take to launch
MOST_POSITIONS, MOST_NUMBERS = 2**16, 2**20     # room from the start
MOST_PLACED = 1024      # buckets whose places are kept
CHECKED_ROWS = 400      # beyond two splits: rows of every kind of product
MASK_BITS = 32
NO_MASK = -1


class GpuForward:
    """One caller at a time."""

    def __init__(self, loaded: LoadedModel, program: GpuProgram, ops: Any) -> None:
        """ops: kernels/ops.py, or kernels/reference.py."""
        self.loaded, self.program, self.ops, self.ranks = loaded, program, ops, loaded.ranks
        self.windows = tuple(dict.fromkeys(layer.window for layer in program.layers))
        is_involved = loaded.layout(1).has_scales or program.softcap is not None
        self.sizes = ops.attention_sizes(loaded.device, program.head_dim, is_involved)
        self.num_checked = min(2 * self.sizes.key_split + CHECKED_ROWS, loaded.max_positions or 2**30)
        self.name = f"{ops.NAME}, {'deterministic' if loaded.ways.deterministic else 'products by torch'}"
        self._head_sizes = [len(part) for part in torch.empty(loaded.vocab_size).tensor_split(self.ranks.size)]
        self._staging = Staging(loaded.device)
        self._graphs = Graphs(loaded.device)
        self._tables: Tables | None = None
        self._before: Batch | None = None
        self._newest: Tensor | None = None      # what the step before has sampled, on the device
        self._samples = NO_SAMPLES              # where a sequence's is in there
        self._filled: tuple[Places, Batch] | None = None        # what the staging holds
        self._placed: dict[Bucket, tuple[Places, Inputs]] = {}
        if self._graphs.are_used:       # what graphs read does not move later, but for longer contexts than these
            program.rotary.reserve(min(MOST_POSITIONS, loaded.max_positions or MOST_POSITIONS))
            self._staging.reserve(MOST_NUMBERS)

    @property
    def facts(self) -> tuple[str, ...]:
        return (self.name, self.ops.digest(self.loaded.device), str(self.ranks.size),
                torch.__version__, transformers.__version__)

    def run(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Copies = ()
            ) -> dict[int, tuple[int, ...]]:
        return self.begin(kv, chunks, masks, copies)()

    def begin(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Copies = ()
              ) -> Callable[..., dict[int, tuple[int, ...]]]:
        """Put a step on the device, behind the one that may be there -> what waits for it, in any thread, given the
        sequences whose samples nobody needs. The one before that is over and has been waited for.
        """
        with self.ranks.in_step(lambda: self._gathers(chunks, masks is not None), self.loaded.device):
            coming = self._launch(kv, chunks, masks, copies)

        def wait(over: Collection[int] = ()) -> dict[int, tuple[int, ...]]:
            best, logits = coming.wait()
            is_stuck = (best == STUCK) & np.isneginf(logits)    # nothing is allowed, of numbers that are all finite
            is_fine = np.isfinite(logits) | is_stuck
            if over:
                is_fine |= np.repeat([chunk.seq_id in over for chunk in chunks], [c.num_samples for c in chunks])
            self.loaded.require_finite(bool(is_fine.all()))
            return verify(chunks, iter(best.tolist()))

        return wait

    def forget_samples(self) -> None:
        """The next step goes on from none that was before: it would not be the newest one."""
        self._samples = NO_SAMPLES

    def best(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Copies = ()
             ) -> tuple[np.ndarray, np.ndarray]:
        """The greedy tokens of all samples, and their logits; NaN where one is not finite."""
        return self._launch(kv, chunks, masks, copies).wait()

    def _launch(self, kv: KVCache, chunks: Sequence[Chunk], masks: Masks | None, copies: Copies) -> Download:
        samples, self._samples = self._samples, NO_SAMPLES      # none, if this step fails
        batch = self._before = make_batch(chunks, self.windows, self._tables_of(kv), self._before, samples)
        if self.program.rotary.reserve(int(batch.positions.max()) + 1):
            self._graphs.forget()
        is_small = len(batch.token_ids) <= GRAPH_ROWS and self._graphs.are_used and kv.is_kept
        bucket = graph_bucket(batch.bucket) if is_small else batch.bucket
        where, step = self._place(bucket, copies, is_small)
        filled, self._filled = self._filled, None
        before = filled[1] if filled and filled[0] is where else None
        self._staging.wait_for_upload()
        self._staging.upload(fill(batch, where, copies, self._staging.numbers, before))
        self._filled = where, batch
        if batch.is_fed:
            assert self._newest is not None, "a step goes on from none"
            feed(step.token_ids, self._newest)
        if copies:
            self.ops.copy_blocks(kv.data, *pairs(where, copies, self._staging.on_device))
        work = partial(self._step, kv, step, bucket.num_slots, masks is None)
        key = kv.number, bucket, masks is None
        rows, (ids, logits) = self._graphs.run(key, work) if is_small else work()
        self.ranks.has_gathered(2 * len(self.program.layers) + (masks is None and bool(len(step.sampled))))
        if masks is not None:
            ids, logits = self._choose(rows, self._masks(masks(), len(step.sampled)))
            ids = self.ranks.firsts(ids)        # the next step may be fed with them, and only the first one has masks
        coming = self._staging.download(ids, logits, len(batch.sampled))
        self._newest, self._samples = coming.ids, samples_of(chunks)
        return coming

    def _place(self, bucket: Bucket, copies: Copies, is_kept: bool) -> tuple[Places, Inputs]:
        """Where a step's numbers lie; the same objects for the same bucket, as long as that stays so."""
        found = self._placed.get(bucket)
        where = found[0] if found else places(bucket)
        if self._staging.reserve(size_with(where, copies)):
            self._graphs.forget()
            self._placed.clear()
            found = self._filled = None
        if found is None:
            found = where, inputs(where, self.windows, self._staging.on_device)
            if len(self._placed) == MOST_PLACED:
                self._placed.clear()
            if is_kept:
                self._placed[bucket] = found
        return found

    def _gathers(self, chunks: Sequence[Chunk], is_masked: bool) -> list[Gathered]:
        """What a step of several processes gathers from them, in its order."""
        rows, samples = sum(len(chunk.token_ids) for chunk in chunks), sum(chunk.num_samples for chunk in chunks)
        if rows <= GRAPH_ROWS and self._graphs.are_used:
            sizes = graph_bucket(Bucket(rows, samples, 0, ()))
            rows, samples = sizes.rows, sizes.samples
        hidden, dtype = self.program.embedding.shape[1], self.program.embedding.dtype
        layers = [((rows, hidden), dtype)] * (2 * len(self.program.layers) - 2) + [((samples, hidden), dtype)] * 2
        head = ((samples, max(self._head_sizes)), dtype)
        return [*layers, head, *([((samples,), torch.int32)] if is_masked else ())]

    def _tables_of(self, kv: KVCache) -> Tables:
        """The same ones from step to step, as long as the pool is the same."""
        of_pool = kv.layout.block_size, kv.null_block
        if self._tables is None or of_pool != (self._tables.cut.block_size, self._tables.null_block):
            cut = self.sizes.cut(kv.layout.block_size, self.program.num_heads // self.program.num_kv_heads)
            self._tables = Tables(cut, kv.null_block)
        return self._tables

    def _step(self, kv: KVCache, step: Inputs, num_slots: int, chooses: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """-> what the sampled rows are before the output head, and their tokens with their logits, if asked for."""
        rows = self._layers(kv, step, num_slots)
        return rows, self._choose(rows) if chooses and len(step.sampled) else (rows[:, 0].int(), rows[:, 0].float())

    def _layers(self, kv: KVCache, step: Inputs, num_slots: int) -> Tensor:
        """Writes all cells -> [samples, hidden] after the final norm."""
        program, ops = self.program, self.ops
        device, eps = self.loaded.device, program.epsilon
        scratch = ops.make_scratch(num_slots, program.num_heads, program.head_dim, device)
        residual = program.embedding.index_select(0, step.token_ids)
        if program.embedding_scale != 1:
            residual = residual * program.embedding_scale
        x = ops.rms_norm(residual, program.layers[0].before_attention, eps)
        for i, layer in enumerate(program.layers):
            query = ops.rotary_write(
                self._product(x, layer.qkv), step.cells, step.positions, *program.rotary.of(layer.kind), kv.blocks,
                kv.scales, i, program.num_heads, layer.query_norm, layer.key_norm, eps)
            x = ops.attend(query, kv.blocks, kv.scales, i, step.works[layer.window], scratch, self.sizes,
                           program.scaling, layer.window, program.softcap)
            if i + 1 == len(program.layers):    # what nobody samples is of no use any more: its cells are written
                x, residual = x.index_select(0, step.sampled), residual.index_select(0, step.sampled)
            x = self._after_attention(x.flatten(1), residual, layer)
            after = program.layers[i + 1].before_attention if i + 1 < len(program.layers) else program.final_norm
            x = ops.add_rms_norm(x, residual, after, eps)
        return x

    def _after_attention(self, x: Tensor, residual: Tensor, layer: GpuLayer) -> Tensor:
        """Adds what attention gave to the residual -> what the MLP gives, not added yet."""
        ops, eps = self.ops, self.program.epsilon
        x = self.ranks.total(self._product(x, layer.output))
        if layer.after_attention is not None:
            x = ops.rms_norm(x, layer.after_attention, eps)
        x = ops.add_rms_norm(x, residual, layer.before_mlp, eps)
        x = ops.gated(self._product(x, layer.gate_up), self.program.is_gelu)
        x = self.ranks.total(self._product(x, layer.down))
        return x if layer.after_mlp is None else ops.rms_norm(x, layer.after_mlp, eps)

    def _product(self, x: Tensor, affine: Affine) -> Tensor:
        if self.loaded.ways.deterministic:
            return self.ops.matmul(x, affine.weight, affine.bias)
        return F.linear(x, affine.weight, affine.bias)

    def _choose(self, rows: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        logits = self.ranks.joined(self._product(rows, self.program.head), self._head_sizes)
        ids, best = self.ops.greedy(logits, *(masks or ()))
        softcap = self.program.final_softcap    # it changes no order
        return ids, best if softcap is None else softcap * torch.tanh(best / softcap)

    def _masks(self, rows: Rows, num_samples: int) -> tuple[Tensor, Tensor]:
        """[rows with a mask, words] and, for every sample, which of them is its own. They are made while the layers are
        computed, so they come in a copy of their own.
        """
        given = [row for row in rows if row is not None]
        words, num_which = -(-self.loaded.vocab_size // MASK_BITS), -(-num_samples // ALIGNED) * ALIGNED
        numbers = np.zeros(num_which + max(len(given), 1) * words, np.int32)
        which, bits = numbers[:num_samples], numbers[num_which:].view(np.uint32).reshape(-1, words)
        which[:] = NO_MASK
        which[[i for i, row in enumerate(rows) if row is not None]] = range(len(given))
        for i, row in enumerate(given):
            bits[i, :row.size] = row[:words]
        sent = self._staging.sent(numbers)
        return sent[num_which:].view(-1, words), sent[:num_samples]

    def cells(self, kv: KVCache, block_table: Sequence[int], num_tokens: int) -> Tensor:
        return kv.gather(block_table).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[:, :, :, :num_tokens]

    def release(self) -> None:
        """Free the model's own weights: those that the program uses are its own, or the same."""
        free_parameters(self.loaded.model)

    def forget_graphs(self) -> None:
        """They are captured anew, as those of the other processes are."""
        self._graphs.forget()

    def close(self) -> None:
        self._graphs.forget()


def scratch_bytes(loaded: LoadedModel, num_rows: int, num_keys: int) -> int:
    """What attention may have at once of this process's heads besides its results: partial ones of every row, for all
    splits of so many keys. That is where all rows belong to short chunks, as those of many forks.
    """
    shapes = loaded.shapes
    try:
        sizes = attention_of(config_of(loaded.device).name, shapes.head_dim)
    except ValueError:      # torch computes these
        return 0
    slots, num_heads = num_rows * -(-num_keys // sizes.key_split), shapes.num_heads // loaded.ranks.size
    num_bytes: int = slots * num_heads * (shapes.head_dim + 2) * torch.float32.itemsize
    return num_bytes


def samples_of(chunks: Sequence[Chunk]) -> dict[int, int]:
    """Where, among a step's samples, the first of each sequence is."""
    first = accumulate((chunk.num_samples for chunk in chunks), initial=0)
    return {chunk.seq_id: place for chunk, place in zip(chunks, first, strict=False) if chunk.num_samples}
