"""One step's chunks through the model: by torch, on any device, or by our own code on the CPU.

Both write exactly the cells that the chunks name and give the greedy tokens of every chunk that samples. Which one runs
is decided once, at start, and is part of the fingerprint: they agree in all but the last bits.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
import transformers

from streamproc.engine import exact
from streamproc.engine.attention import KEY_TILE
from streamproc.engine.batch import SPAN_ROWS, Geometry, build_batch
from streamproc.engine.chip import kernel_facts
from streamproc.engine.cpu.forward import CpuForward
from streamproc.engine.cpu.library import library
from streamproc.engine.cpu.program import compile_program
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.program import compile_gpu_program
from streamproc.engine.kv_cache import Copies, KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.masks import Masks, unpacked
from streamproc.engine.parts import Unknown
from streamproc.engine.support import Recorder
from streamproc.errors import OutOfMemory, Usage
from streamproc.schedule.plan import STUCK, Chunk, Plan, verify

CHECK_TOKENS = 24
CHECK_CUTS = (1, 3, 8, 12)
AGREEMENT = {torch.float32: 0.01, torch.bfloat16: 0.3, torch.float16: 0.1}     # of the logits' standard deviation


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
    try:
        with torch.inference_mode():
            if plan.chunks:
                return forward.run(kv, plan.chunks, masks, plan.copies)
            kv.copy(plan.copies)
            return {}
    except (RuntimeError, MemoryError) as problem:
        if isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(problem):
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


def choose_forward(loaded: LoadedModel, block_size: int, threads: int) -> tuple[Forward, bool]:
    """The fastest that computes this model right, and whether a token's bits depend on nothing but its sequence.

    Raises Usage where K and V are to be codes, and only torch computes the model.
    """
    with torch.inference_mode():
        own: CpuForward | GpuForward | None
        if loaded.device.type == "cuda" or loaded.ranks.size > 1:
            own = gpu_forward(loaded, block_size)
        else:
            own = cpu_forward(loaded, block_size, threads)
        if own:
            return own, loaded.ranks.all(whole_is_exact(own, block_size))
        if loaded.layout(block_size).has_scales:
            raise Usage("engine.kv_dtype: only auto for this model: our kernels do not know all of its parts")
        return torch_forward(loaded, block_size)


def gpu_forward(loaded: LoadedModel, block_size: int) -> GpuForward | None:
    """None where a part of the model is unknown to us, and one process can do without. Raises Usage where several
    processes cannot share it.
    """
    name = "ops" if loaded.device.type == "cuda" else "reference"       # triton is not everywhere
    ops = importlib.import_module(f"streamproc.kernels.{name}")
    ranks, why = loaded.ranks, "its logits are not those of transformers"
    try:
        forward = GpuForward(loaded, compile_gpu_program(loaded, ranks), ops)
        if ranks.all(agrees(forward, block_size)):
            return forward
        forward.close()
    except (Unknown, AttributeError, KeyError, TypeError) as problem:   # as for the CPU
        why = str(problem)
    if ranks.size == 1:
        return None
    raise Usage(f"engine.model: this model cannot be shared by {ranks.size} processes ({why}); use another one, or "
                "start streamproc without torchrun")


def cpu_forward(loaded: LoadedModel, block_size: int, threads: int) -> CpuForward | None:
    """None where forward.cpp was not built, or does not compute this model."""
    code = library()
    if code is None:
        return None
    try:
        forward = CpuForward(code, loaded, compile_program(loaded, block_size), threads)
    except (Unknown, AttributeError, KeyError, TypeError):      # or its parts are not where the family has them
        return None
    if agrees(forward, block_size):
        return forward
    forward.close()
    return None


def torch_forward(loaded: LoadedModel, block_size: int) -> tuple[TorchForward, bool]:
    """With the padding of rows to use here, and whether it makes results exact."""
    multiple = exact.find_row_multiple(loaded.model)
    forward = TorchForward(loaded, multiple or exact.MULTIPLES[0])
    if multiple is None or loaded.has_experts:
        return forward, False
    like = next(loaded.model.parameters())
    is_exact = exact.attention_is_exact(loaded.shapes, like, multiple, block_size)
    return forward, is_exact and whole_is_exact(forward, block_size)


def check_ids(loaded: LoadedModel) -> tuple[int, ...]:
    return tuple(i * 7 % loaded.vocab_size for i in range(CHECK_TOKENS))


def agrees(forward: CpuForward | GpuForward, block_size: int) -> bool:
    """Whether every prefix of a short text has the token, and its logit, that transformers' own model gives."""
    loaded, ids = forward.loaded, check_ids(forward.loaded)
    per_table = -(-len(ids) // block_size)
    layout = replace(loaded.layout(block_size), dtype=loaded.dtype)     # no codes: they are off by what they are
    kv = KVCache(layout, len(ids) * per_table, loaded.device)
    chunks = [Chunk(i, 0, ids[:i + 1], tuple(range(i * per_table, (i + 1) * per_table)), 1) for i in range(len(ids))]
    found, logits = forward.best(kv, chunks)
    if loaded.ranks.rank:       # all have found the same, and the first one compares it
        return True
    here = loaded.model.device
    theirs = loaded.model(input_ids=torch.tensor([ids], device=here), use_cache=False,
                          position_ids=torch.arange(len(ids), device=here)[None],
                          streamproc_step=Recorder()).logits[0].float().cpu()
    expected = theirs[torch.arange(len(ids)), torch.from_numpy(found).long()]
    allowed = AGREEMENT[loaded.dtype] * theirs.std(dim=-1)
    off = torch.maximum((torch.from_numpy(logits) - expected).abs(), theirs.max(-1).values - expected)
    return bool((off <= allowed).all())


def whole_is_exact(forward: Forward, block_size: int) -> bool:
    """A sequence has the same cells in one chunk as in pieces beside another sequence."""
    loaded, num_tokens = forward.loaded, forward.num_checked
    ids = tuple(i * 7 % loaded.vocab_size for i in range(num_tokens))
    num_blocks = -(-num_tokens // block_size)
    tables = [tuple(range(i * num_blocks, (i + 1) * num_blocks)) for i in range(3)]
    kv = KVCache(loaded.layout(block_size), 3 * num_blocks, loaded.device)
    last = run_step(forward, kv, Plan((), (Chunk(0, 0, ids, tables[0], 1),)))
    found: dict[int, tuple[int, ...]] = {}
    start = 0
    cuts = (num_tokens - CHECK_TOKENS, *CHECK_CUTS) if num_tokens > CHECK_TOKENS else CHECK_CUTS
    for cut in cuts:
        company = Chunk(2, 0, ids[:min(cut, CHECK_TOKENS) + 2], tables[2])
        piece = Chunk(0, start, ids[start:start + cut], tables[1], 1)
        found = run_step(forward, kv, Plan((), (company, piece)))
        start += cut
    return found == last and all(torch.equal(kv.data[first], kv.data[other])
                                 for first, other in zip(tables[0], tables[1], strict=True))
