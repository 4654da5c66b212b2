"""Random models of a given shape, made on the device itself, with what our engine makes of them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gpu.floors import Shape
from streamproc.engine import attention, support
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.program import GpuProgram, compile_gpu_program
from streamproc.engine.kv_cache import CODES, KVCache, Layout
from streamproc.engine.loaded import PLAIN, LoadedModel, Ways, max_positions
from streamproc.schedule.plan import UNTOLD, Chunk

Ids = tuple[int, ...]
NOISE_BLOCKS = 64


@dataclass
class Subject:
    """A model for us and for transformers: the same weights, most of them in the same memory."""

    loaded: LoadedModel
    program: GpuProgram
    shape: Shape
    ops: ModuleType

    @property
    def model(self) -> Any:
        return self.loaded.model

    @functools.cached_property
    def exact(self) -> GpuForward:
        """As the engine is by default: `deterministic`."""
        return GpuForward(self.loaded, self.program, self.ops)

    @functools.cached_property
    def fast(self) -> GpuForward:
        """With torch's products."""
        return GpuForward(replace(self.loaded, ways=Ways(deterministic=False)), self.program, self.ops)

    def with_codes(self, codes: str | None) -> GpuForward:
        """For a pool of such cells."""
        if codes is None:
            return self.exact
        return GpuForward(replace(self.loaded, ways=Ways(CODES[codes])), self.program, self.ops)

    def layout(self, block_size: int, codes: str | None = None) -> Layout:
        shapes, dtype = self.loaded.shapes, CODES[codes] if codes else self.loaded.dtype
        return Layout(shapes.num_layers, shapes.num_kv_heads, shapes.head_dim, block_size, dtype)

    def shape_of(self, layout: Layout) -> Shape:
        """With cells of this layout."""
        return replace(self.shape, kv_itemsize=layout.dtype.itemsize, scale_bytes=layout.scale_bytes)

    def release(self) -> None:
        """Nothing but ours can compute with it any more."""
        self.exact.release()

    def ids(self, start: int, count: int, salt: int = 0) -> Ids:
        """A piece of an endless stream of tokens; another salt gives another stream."""
        return tuple((position * 7919 + salt * 104_729 + 17) % self.loaded.vocab_size
                     for position in range(start, start + count))


def make_subject(config: dict[str, Any], device: torch.device, dtype: torch.dtype, ops: ModuleType) -> Subject:
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation=attention.NAME, dtype=dtype)
    model = model.eval()
    text = model.config.get_text_config()
    with torch.inference_mode():
        shapes = support.probe(model, text, "random weights")
        loaded = LoadedModel(model, Path(), shapes, config["vocab_size"], max_positions(text), dtype, PLAIN, device,
                             frozenset(), False, "random")     # nobody asks what its weights hash to
        program = compile_gpu_program(loaded)
    shape = Shape(config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"],
                  config["num_key_value_heads"], config["head_dim"], config["intermediate_size"],
                  config["vocab_size"], dtype.itemsize, dtype.itemsize)
    return Subject(loaded, program, shape, ops)


def noisy_pool(layout: Layout, num_blocks: int, device: torch.device) -> KVCache:
    """A pool of random numbers, where it makes no difference which: a chip is faster with zeros."""
    kv = KVCache(layout, num_blocks, device)
    noise = torch.randn(min(NOISE_BLOCKS, num_blocks), *layout.block_shape, device=device).to(layout.dtype)
    for i in range(0, num_blocks, len(noise)):
        kv.blocks[i:min(i + len(noise), num_blocks)] = noise[:num_blocks - i]
    if kv.scales is not None:
        kv.scales[:-1] = 1.0
    return kv


class Kept:
    """One sequence in blocks of its own, and forks of it, whose last blocks are their own."""

    def __init__(self, forward: GpuForward, kv: KVCache, blocks: Sequence[int],
                 fork_blocks: Sequence[Sequence[int]] = ()) -> None:
        self.forward, self.kv, self.table, self.fork_blocks = forward, kv, tuple(blocks), fork_blocks
        self.size = 0

    def grow(self, ids: Sequence[int]) -> None:
        self._run([Chunk(0, self.size, tuple(ids), self.table)])
        self.size += len(ids)

    def ask(self, ids: Sequence[int], num_answer: int) -> Ids:
        """The context stays as it is: the cells behind it are written again."""
        end = self.size + len(ids)
        steps = [[Chunk(0, self.size, tuple(ids), self.table, 1)],
                 *([Chunk(0, at, (UNTOLD,), self.table, 1)] for at in range(end, end + num_answer - 1))]
        return tuple(token for found in run_queued(self.forward, self.kv, steps) for token in found[0])

    def verify(self, ids: Sequence[int], draft: Sequence[int]) -> Ids:
        """The tokens after `ids` and after each of the draft that holds, in one step."""
        return self._run([Chunk(0, self.size, (*ids, *draft), self.table, len(draft) + 1)])[0]

    def cut(self, size: int) -> None:
        self.size = size

    def forks(self) -> list[tuple[int, ...]]:
        """Tables of all forks, at the size that the sequence has now; its partly filled block is copied."""
        full, block_size = self.size // self.kv.layout.block_size, self.kv.layout.block_size
        if self.size % block_size:
            self.kv.copy([(self.table[full], own[0]) for own in self.fork_blocks])
        return [(*self.table[:full], *own) for own in self.fork_blocks]

    def _run(self, chunks: Sequence[Chunk]) -> dict[int, Ids]:
        return run(self.forward, self.kv, chunks)


def run(forward: GpuForward, kv: KVCache, chunks: Sequence[Chunk]) -> dict[int, Ids]:
    with torch.inference_mode():
        return forward.run(kv, chunks)


def run_queued(forward: GpuForward, kv: KVCache, steps: Iterable[Sequence[Chunk]]) -> list[dict[int, Ids]]:
    """Each is begun while the one before it is on the device, as in the engine; UNTOLD: what that one samples."""
    found: list[dict[int, Ids]] = []
    before: Callable[[], dict[int, Ids]] | None = None
    with torch.inference_mode():
        for chunks in steps:
            coming = forward.begin(kv, chunks)
            if before:
                found.append(before())
            before = coming
    return [*found, before()] if before else found
