"""The GPU's forward on the CPU, with the references of its kernels: K and V as codes, and what it does with a step.

That it computes what the model does, bit for bit in any company, is held in test_exactness.py, beside the CPU's.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny

from streamproc.config import Config
from streamproc.engine.build import free_kv_bytes
from streamproc.engine.choice import accuracy, agrees, gpu_forward, whole_is_exact
from streamproc.engine.gpu.batch import fill, graph_bucket, inputs, make_batch, pairs, places, size_with
from streamproc.engine.gpu.forward import GpuForward, scratch_bytes
from streamproc.engine.gpu.program import compile_gpu_program
from streamproc.engine.kv_cache import CODES, KVCache
from streamproc.engine.loaded import LoadedModel, Ways, describe
from streamproc.engine.parts import join_in_place, take_apart
from streamproc.engine.support import Recorder
from streamproc.kernels import reference
from streamproc.kernels.tables import Cut, Tables
from streamproc.kernels.work import Span, make_lists, make_scratch
from streamproc.schedule.plan import STUCK, Chunk

GIB = 2**30
Load = Callable[[str, torch.dtype], LoadedModel]


def made(load: Load, name: str, ways: Ways) -> GpuForward:
    loaded = replace(load(name, torch.bfloat16), ways=ways)
    return GpuForward(loaded, compile_gpu_program(loaded), reference)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_codes_are_exact_too_and_near_to_what_they_stand_for(name: str, codes: str, load: Load) -> None:
    with torch.inference_mode():
        forward = made(load, name, Ways(CODES[codes]))
        assert agrees(forward, 16)
        assert whole_is_exact(forward, 16)
        same, off = accuracy(forward, 16)
    assert same > 0.8
    assert 0 < off < {"fp8": 0.1, "int8": 0.03}[codes]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_float16_is_computed_too(name: str) -> None:
    loaded = describe(tiny(name, torch.float16), Path(), name)
    with torch.inference_mode():
        forward = GpuForward(loaded, compile_gpu_program(loaded), reference)
        assert agrees(forward, 16)
        assert whole_is_exact(forward, 16)
    assert loaded.layout(16).dtype == torch.float16


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_weights_that_are_joined_in_place_are_taken_as_they_are(name: str) -> None:
    model = tiny(name)
    loaded, token_ids = describe(model, Path(), name), torch.arange(9)[None]
    with torch.inference_mode():
        before = model(token_ids, use_cache=False, streamproc_step=Recorder()).logits
        join_in_place(take_apart(loaded))
        program = compile_gpu_program(loaded)
        assert torch.equal(model(token_ids, use_cache=False, streamproc_step=Recorder()).logits, before)
        assert agrees(GpuForward(loaded, program, reference), 16)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    for layer in program.layers:
        for product in (layer.qkv, layer.gate_up, layer.output, layer.down):
            assert product.weight.untyped_storage().data_ptr() in own
    assert program.head.weight.untyped_storage().data_ptr() in own


def test_a_block_of_codes_is_one_piece_with_its_scales(load: Load) -> None:
    layout = made(load, "llama", Ways(torch.int8)).loaded.layout(16)
    assert layout.block_bytes == 2 * 2 * 2 * 16 * (16 + 4)      # layers, K and V, heads, cells of codes and a scale
    kv = KVCache(layout, 3, torch.device("cpu"))
    kv.blocks[1], kv.scales[1] = 5, 0.5
    data = kv.read(1)
    kv.write(2, data)
    assert torch.equal(kv.gather([2]), torch.full((1, *layout.block_shape), 2.5))
    assert not kv.gather([0]).any()


def test_the_pool_leaves_room_for_what_attention_keeps_of_many_forks(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16,384 rows over 32k keys: 16 GiB for an 8B model, more than the twelfth of an H200's memory."""
    loaded = load("llama", torch.bfloat16)
    heads, (key_split, key_tile) = loaded.shapes.num_heads, (64, 16)        # of the table for the interpreter
    spans = [Span(5 * i, 5, 195, range(20)) for i in range(8)]
    lists = make_lists(spans, None, Cut(key_tile, key_split, 16, 4, 4, 9), 99)
    scratch = make_scratch(lists.num_slots, heads, 16, torch.device("cpu"))
    assert scratch_bytes(loaded, 40, 200) == scratch.stats.nbytes + scratch.sums.nbytes
    shapes = replace(loaded.shapes, num_heads=32, head_dim=128)
    large = replace(loaded, shapes=shapes, device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (120 * GIB, 141 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    config = Config()

    def left(step_tokens: int, context_tokens: int) -> float:
        engine = replace(config.engine, step_tokens=step_tokens, context_tokens=context_tokens)
        return free_kv_bytes(replace(config, engine=engine), large) / GIB

    assert left(512, 32_000) == 120 - 141 / 12
    assert left(8192, 32_000) == pytest.approx(120 - 141 / 24 - 8.1 - 2 * 0.5, abs=0.2)
    assert left(16_384, 32_000) == pytest.approx(120 - 141 / 24 - 16.2 - 2 * 0.5, abs=0.4)
    assert free_kv_bytes(config, replace(large, shapes=replace(shapes, head_dim=300))) / GIB == 120 - 141 / 12


def test_torchs_products_are_asked_for_by_name(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(reference, "matmul", lambda *arguments: calls.append(arguments))
    with torch.inference_mode():
        assert agrees(made(load, "llama", Ways(deterministic=False)), 16)
    assert not calls


def test_where_kernels_cannot_run_torch_computes_and_it_is_said(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton without a compiler, or on a chip that is too old, raises what it likes."""
    def refuse(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    loaded = load("llama", torch.float32)
    monkeypatch.setattr(reference, "rms_norm", refuse)
    with torch.inference_mode():
        assert gpu_forward(loaded, 16) is None
    assert [record.getMessage() for record in caplog.records] == [
        "engine: torch computes this model, our kernels for GPUs do not: Failed to find C compiler. Please specify one"]


def test_a_constraint_that_allows_nothing_is_told_and_no_fault_of_the_model(load: Load) -> None:
    forward = made(load, "llama", Ways())
    kv = KVCache(forward.loaded.layout(16), 2, torch.device("cpu"))
    chunk = Chunk(0, 0, (5, 6, 7), (0,), 1)
    with torch.inference_mode():
        found = forward.run(kv, [chunk], lambda: [np.zeros(-(-forward.loaded.vocab_size // 32), np.uint32)])
    assert found == {0: (STUCK,)}


@pytest.mark.parametrize("copies", [(), ((3, 4), (5, 6))])
def test_a_larger_bucket_holds_the_same_step(copies: tuple[tuple[int, int], ...], load: Load) -> None:
    forward = made(load, "gemma3", Ways())
    chunks = [Chunk(0, 40, (7, 8, 9), (4, 2, 1), 2), Chunk(1, 0, tuple(range(3, 60)), (7, 6, 5, 3), 1)]
    batch = make_batch(chunks, forward.windows, Tables(forward.sizes.cut(16, 2), 9))
    found = []
    for bucket in (batch.bucket, graph_bucket(batch.bucket)):
        where = places(bucket)
        numbers = torch.full((size_with(where, copies),), 12345, dtype=torch.int32)
        size = fill(batch, where, copies, numbers)
        assert size <= len(numbers)
        sources, destinations = pairs(where, copies, numbers)
        assert [*zip(sources.tolist(), destinations.tolist(), strict=True)] == [*copies]
        step = inputs(where, forward.windows, numbers)
        assert step.token_ids.tolist()[:60] == [7, 8, 9, *range(3, 60)]
        assert step.cells.tolist()[60:] == [-1] * (bucket.rows - 60)
        assert step.positions.tolist()[60:] == [0] * (bucket.rows - 60)
        found.append([(work.rows[:work.counts[0] + work.counts[1]].tolist(), work.whole[:work.counts[0]].tolist(),
                       work.split[:work.counts[1]].tolist(), work.merged[:work.counts[2]].tolist(),
                       work.slots[:60].tolist()) for work in step.works.values()])
    assert found[0] == found[1]
