"""Which forward computes a model here: the fastest that gives its logits, and whether a token's bits are its own.

Both are measured when the engine is built, by short texts; nothing is taken on trust.
"""

import importlib
import logging
from dataclasses import replace

import numpy as np
import torch

from streamproc.engine import exact
from streamproc.engine.cpu.forward import CpuForward
from streamproc.engine.cpu.library import library
from streamproc.engine.cpu.program import compile_program
from streamproc.engine.forward import CHECK_TOKENS, Forward, TorchForward, run_step
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.program import compile_gpu_program
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.parts import Unknown
from streamproc.engine.support import Recorder
from streamproc.errors import Usage, one_line
from streamproc.schedule.plan import Chunk, Plan

log = logging.getLogger(__name__)

CHECK_CUTS = (1, 3, 8, 12)
LARGE_CUTS = (100, 200, 300)    # of a longer sequence: each meets another tile of a product
TURNS = 3       # of the same steps: a graph is captured in the second and replayed in the third
AGREEMENT = {torch.float32: 0.01, torch.bfloat16: 0.3, torch.float16: 0.1}     # of the logits' standard deviation


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
        if own:     # torch's products are not known by a few of their shapes
            is_exact = whole_is_exact(own, block_size) and (loaded.ways.deterministic or isinstance(own, CpuForward))
            return own, loaded.ranks.all(is_exact)
        if loaded.layout(block_size).has_scales:
            raise Usage("engine.kv_dtype: only auto for this model: our kernels do not know all of its parts")
        return torch_forward(loaded, block_size)


def gpu_forward(loaded: LoadedModel, block_size: int) -> GpuForward | None:
    """None where a part of the model is unknown to us, and one process can do without. Raises Usage where several
    processes cannot share it.
    """
    name = "ops" if loaded.device.type == "cuda" else "reference"       # triton is not everywhere
    ranks, why = loaded.ranks, "its logits are not those of transformers"
    try:
        if loaded.dtype == torch.float32 and loaded.device.type == "cuda":
            raise Unknown("its numbers are float32, matrix units multiply others; engine.dtype=bfloat16 is faster")
        ops = importlib.import_module(f"streamproc.kernels.{name}")
        forward = GpuForward(loaded, compile_gpu_program(loaded, ranks), ops)
        if ranks.all(agrees(forward, block_size)) and ranks.all(obeys(forward, block_size)):
            tell_accuracy(forward, block_size)
            return forward
        forward.close()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:        # of the model's parts, or Triton's, which raises many kinds: all are "not here"
        why = one_line(problem)
    if ranks.size == 1:
        log.warning("engine: torch computes this model, our kernels for GPUs do not: %s", why)
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
    found, logits = prefixes(forward, block_size, loaded.dtype)     # no codes: they are off by what they are
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


def obeys(forward: GpuForward, block_size: int) -> bool:
    """Whether it keeps to masks, and copies blocks: a kernel that is met here is not compiled in a step at work."""
    loaded, ids = forward.loaded, check_ids(forward.loaded)
    num_blocks = -(-len(ids) // block_size)
    kv = KVCache(loaded.layout(block_size), num_blocks + 1, loaded.device)
    chunk = Chunk(0, 0, ids, tuple(range(num_blocks)), 1)
    found, = forward.run(kv, [chunk])[0]
    others = np.full(-(-loaded.vocab_size // 32), 2**32 - 1, np.uint32)
    others[found // 32] ^= np.uint32(1 << found % 32)
    second, = forward.run(kv, [chunk], lambda: [others], [(0, num_blocks)])[0]
    again, = forward.run(kv, [chunk], lambda: [~others])[0]
    return again == found != second and torch.equal(kv.data[0], kv.data[num_blocks])


def prefixes(forward: CpuForward | GpuForward, block_size: int, kv_dtype: torch.dtype
             ) -> tuple[np.ndarray, np.ndarray]:
    """The token after every prefix of a short text, and its logit, with K and V of this dtype."""
    loaded, ids = forward.loaded, check_ids(forward.loaded)
    per_table = -(-len(ids) // block_size)
    kv = KVCache(replace(loaded.layout(block_size), dtype=kv_dtype), len(ids) * per_table, loaded.device)
    chunks = [Chunk(i, 0, ids[:i + 1], tuple(range(i * per_table, (i + 1) * per_table)), 1) for i in range(len(ids))]
    return forward.best(kv, chunks)


def accuracy(forward: GpuForward, block_size: int) -> tuple[float, float]:
    """How many greedy tokens are the same with K and V as codes, and how far those tokens' logits are off: the mean,
    as a share of the logits' own mean size.
    """
    exact, exact_logits = prefixes(forward, block_size, forward.loaded.dtype)
    found, logits = prefixes(forward, block_size, forward.loaded.kv_dtype)
    same = found == exact
    off = np.abs(logits - exact_logits)[same].mean() / np.abs(exact_logits).mean() if same.any() else np.inf
    return float(same.mean()), float(off)


def tell_accuracy(forward: GpuForward, block_size: int) -> None:
    if forward.loaded.layout(block_size).has_scales:
        share, off = accuracy(forward, block_size)      # in all processes: they compute it together
        loaded = forward.loaded
        log.info("K and V are kept as %s: after a short text %.0f %% of %d greedy tokens are those of %s, and their "
                 "logits off by %.2g %%", loaded.kv_dtype, 100 * share, CHECK_TOKENS, loaded.dtype, 100 * off)


def whole_is_exact(forward: Forward, block_size: int) -> bool:
    """A sequence has the same cells in one chunk as in pieces beside another sequence."""
    loaded, num_tokens = forward.loaded, forward.num_checked
    ids = tuple(i * 7 % loaded.vocab_size for i in range(num_tokens))
    num_blocks = -(-num_tokens // block_size)
    tables = [tuple(range(i * num_blocks, (i + 1) * num_blocks)) for i in range(3)]
    kv = KVCache(loaded.layout(block_size), 3 * num_blocks, loaded.device)
    last, is_exact = run_step(forward, kv, Plan((), (Chunk(0, 0, ids, tables[0], 1),))), True
    for _ in range(TURNS if loaded.device.type == "cuda" else 1):
        kv.data[list(tables[1])] = 0
        found: dict[int, tuple[int, ...]] = {}
        start = 0
        for cut in cuts(num_tokens):
            company = Chunk(2, 0, ids[:min(cut, CHECK_TOKENS) + 2], tables[2])
            piece = Chunk(0, start, ids[start:start + cut], tables[1], 1)
            found = run_step(forward, kv, Plan((), (company, piece)))
            start += cut
        is_exact &= found == last and torch.equal(kv.data[list(tables[0])], kv.data[list(tables[1])])
    return is_exact     # not before: several processes compute all of it together


def cuts(num_tokens: int) -> tuple[int, ...]:
    """Pieces of so many tokens: the small ones last, where they see the most."""
    small = sum(CHECK_CUTS)
    large = sum(LARGE_CUTS) if num_tokens > small + sum(LARGE_CUTS) else 0
    first = num_tokens - small - large
    return (*((first,) if first else ()), *(LARGE_CUTS if large else ()), *CHECK_CUTS)
