"""The specification itself, against attention written down once more; and the engine's attention against it."""

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from streamproc.engine.attention import Heads
from streamproc.engine.batch import Geometry, build_batch
from streamproc.engine.kv_cache import KVCache, Layout
from streamproc.kernels import reference
from streamproc.kernels.reference import paged_attention
from streamproc.schedule.plan import Chunk

BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM = 16, 4, 2, 32
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("window", [None, 5])
def test_reference_equals_dense_attention(window: int | None) -> None:
    torch.manual_seed(0)
    blocks = torch.randn(5, 2, KV_HEADS, 4, HEAD_DIM)
    table, start, rows = (3, 0, 4), 6, 5
    query = torch.randn(rows, HEADS, HEAD_DIM)
    cells = torch.cat([blocks[block] for block in table], 2)[:, :, :start + rows].double()
    keys, values = cells.repeat_interleave(HEADS // KV_HEADS, 1)
    position = start + torch.arange(rows)[:, None]
    visible = torch.arange(start + rows)[None] <= position
    if window:
        visible &= torch.arange(start + rows)[None] > position - window
    expected = F.scaled_dot_product_attention(query.double().transpose(0, 1), keys, values, attn_mask=visible)
    assert torch.allclose(paged_attention(query, blocks, table, start, window), expected.transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 100, 700])
def test_the_engines_attention_equals_the_reference(window: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kv = KVCache(Layout(2, KV_HEADS, HEAD_DIM, BLOCK_SIZE, dtype), 200, torch.device("cpu"))
    kv.blocks[:-1] = torch.randn(kv.blocks[:-1].shape)
    order = random.Random(0).sample(range(200), 200)
    spans = [(0, 3), (15, 2), (511, 1), (500, 30), (1000, 140)]
    chunks, used = [], 0
    for i, (start, rows) in enumerate(spans):
        num_blocks = -(-(start + rows) // BLOCK_SIZE)
        chunks.append(Chunk(i, start, (0,) * rows, tuple(order[used:used + num_blocks])))
        used += num_blocks
    num_rows = sum(rows for _, rows in spans)
    query, key, value = (torch.randn(heads, num_rows + 3, HEAD_DIM).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    step = build_batch(chunks, kv, Geometry(HEADS, frozenset([window, 9]), 4)).step
    out = step.attend(Heads(1, query, key, value, HEAD_DIM ** -0.5, window, {}))
    row = 0
    for chunk in chunks:
        rows = slice(row, row + len(chunk.token_ids))
        expected = paged_attention(query[:, rows].transpose(0, 1), kv.blocks[:, 1], chunk.block_table, chunk.start,
                                   window)
        assert torch.allclose(out[rows].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        row = rows.stop


def test_the_references_compute_on_the_device_that_their_inputs_are_on() -> None:
    """With tensors that only claim to be on a GPU, but for the lists that are read on the CPU."""
    lists = {"counts": torch.tensor([1, 1, 0]), "whole": torch.tensor([[0, 4, 0, 0, 0, 2]]),
             "split": torch.tensor([[4, 2, 0, 0, 0, 1]])}
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        def number(*shape: int) -> torch.Tensor:
            return torch.empty(*shape, dtype=torch.bfloat16, device="cuda")

        def places(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device="cuda")

        kv, scales = number(5, 2, 2, 2, 16, 64), number(5, 2, 2, 2, 16).float()
        work = SimpleNamespace(rows=places(6), tables=places(64), positions=places(6), **lists)
        sizes = reference.attention_sizes(torch.device("cuda"), 64)
        for cells, scale in ((kv, None), (kv.char(), scales)):
            arguments = 1, work, None, sizes, 0.1, 40, 30.0
            results = [reference.attend(number(6, 8, 64), cells, scale, *arguments)]  # type: ignore[arg-type]
            turned = places(6), places(6), number(9, 32), number(9, 32), cells, scale, 1, 8
            results.append(reference.rotary_write(number(6, 12 * 64), *turned, number(64), number(64), 1e-6))
        results += [reference.rms_norm(number(6, 64), number(64), 1e-6, number(6, 64)),
                    reference.add_rms_norm(number(6, 64), number(6, 64), number(64), 1e-6),
                    reference.gated(number(6, 64), is_gelu=True), reference.matmul(number(6, 64), number(9, 64)),
                    reference.gather_blocks(kv, places(3)), *reference.greedy(number(6, 99), places(3, 4), places(6)),
                    paged_attention(number(2, 8, 64), kv[:, 0], (1, 2), 3)]
        reference.scatter_blocks(kv, places(3), number(3, 2, 2, 2, 16, 64))
        reference.copy_blocks(kv, places(3), places(3))
        assert {result.device.type for result in results} == {"cuda"}
