"""The CPU's own forward: which models it takes, which machine code runs where, threads that share a step."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from streamproc.config import Config
from streamproc.engine import choice
from streamproc.engine.build import build_engine, stateless_answer
from streamproc.engine.choice import agrees, choose_forward, cpu_forward
from streamproc.engine.cpu import library as libraries
from streamproc.engine.cpu.forward import CpuForward
from streamproc.engine.cpu.library import KINDS, library_path, processor_flags
from streamproc.engine.cpu.program import POSITIONS, Rotary, Unknown, compile_program
from streamproc.engine.forward import Forward, TorchForward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel, describe
from streamproc.engine.runner import ModelRunner
from streamproc.errors import StreamprocError
from streamproc.schedule.plan import Chunk, Plan

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip
IDS = tuple(random.Random(3).choices(range(3, 300), k=200))
Load = Callable[[str, torch.dtype], LoadedModel]


def made(config: Any, dtype: torch.dtype = torch.float32) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="streamproc").to(dtype).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.3)
    return describe(model, Path(), "made")


def prefill(forward: Forward, ids: tuple[int, ...] = IDS) -> tuple[torch.Tensor, int]:
    """Cells and next token of one sequence in one chunk."""
    loaded, table = forward.loaded, tuple(range(-(-len(ids) // 16)))
    kv = KVCache(loaded.layout(16), len(table), loaded.device)
    (token,) = run_step(forward, kv, Plan((), (Chunk(0, 0, ids, table, 1),)))[0]
    return forward.cells(kv, table, len(ids)), token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "phi3", "smollm3"])
def test_cells_are_those_of_torch_but_for_the_last_bits(name: str, dtype: torch.dtype, load: Load) -> None:
    with torch.inference_mode():
        own = cpu_forward(load(name, dtype), 16, 1)
        assert own
        ours, theirs = (prefill(forward)[0].float() for forward in (own, TorchForward(load(name, dtype), 4)))
    error = (ours - theirs).norm() / theirs.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_team_gives_the_bits_of_one_thread(dtype: torch.dtype, load: Load) -> None:
    loaded = load("qwen3", dtype)
    with torch.inference_mode():
        alone, team = cpu_forward(loaded, 16, 1), cpu_forward(loaded, 16, 3)
    assert alone
    assert team
    cells, token = prefill(alone)
    for _ in range(20):
        found, same = prefill(team)
        assert torch.equal(found, cells)
        assert same == token
    team.close()
    team.close()


@pytest.mark.parametrize(("config", "reason"), [
    (LlamaConfig(**SHAPE, mlp_bias=True), "biases"),
    (LlamaConfig(**SHAPE, hidden_act="relu"), "activation"),
    (LlamaConfig(**{**SHAPE, "intermediate_size": 100}), "multiple of 16"),
    (LlamaConfig(**SHAPE, head_dim=24), "multiple of 16"),
])  # fmt: skip
def test_what_it_does_not_know_is_left_to_torch(config: Any, reason: str) -> None:
    loaded = made(config)
    with pytest.raises(Unknown, match=reason):
        compile_program(loaded, 16)
    forward, is_exact = choose_forward(loaded, 16, 1)
    assert isinstance(forward, TorchForward)
    assert is_exact


@pytest.mark.parametrize("config", [
    Qwen2Config(**SHAPE), LlamaConfig(**SHAPE, attention_bias=True), LlamaConfig(**SHAPE, head_dim=80),
    LlamaConfig(**SHAPE, tie_word_embeddings=True), LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    LlamaConfig(**{**SHAPE, "vocab_size": 301}),
])  # fmt: skip
def test_other_shapes_are_computed_too(config: Any) -> None:
    with torch.inference_mode():
        loaded = made(config)
        own = cpu_forward(loaded, 32, 1)
    assert own
    found = choose_forward(loaded, 32, 1)
    assert isinstance(found[0], CpuForward)
    assert found[1]


@pytest.mark.parametrize("config", [
    GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300),
    GraniteConfig(**SHAPE, residual_multiplier=0.22),
])  # fmt: skip
def test_other_families_are_left_to_torch(config: Any) -> None:
    """Their parts may bear the same names and compute something else."""
    forward, _ = choose_forward(made(config), 16, 1)
    assert isinstance(forward, TorchForward)


def test_threads_end_with_the_runner(load: Load) -> None:
    loaded, before = load("qwen3", torch.float32), len(list(Path("/proc/self/task").iterdir()))
    for _ in range(3):
        runner = ModelRunner(loaded, KVCache(loaded.layout(16), 8, loaded.device), threads=4)
        assert isinstance(runner.forward, CpuForward)
        runner.close()
        runner.close()
    assert len(list(Path("/proc/self/task").iterdir())) < before + 6


def test_gemma_scales_embeddings_in_the_dtype_of_its_weights(load: Load) -> None:
    scale = compile_program(load("gemma3", torch.bfloat16), 16).model.embedding_scale
    assert scale == float(torch.tensor(64**0.5).bfloat16())
    wide = made(Gemma3TextConfig(**{**SHAPE, "hidden_size": 80}, head_dim=32, sliding_window=64), torch.bfloat16)
    assert compile_program(wide, 16).model.embedding_scale == float(torch.tensor(80**0.5).bfloat16())


def test_cells_that_are_no_numbers_are_an_error(load: Load) -> None:
    loaded = load("llama", torch.float32)
    with torch.inference_mode():
        own = cpu_forward(loaded, 16, 1)
        assert own
        kv = KVCache(loaded.layout(16), 8, loaded.device)
        run_step(own, kv, Plan((), (Chunk(0, 0, IDS[:40], (0, 1, 2)),)))
        kv.blocks[1, :, 0].fill_(float("nan"))
        with pytest.raises(StreamprocError, match="not finite"):
            run_step(own, kv, Plan((), (Chunk(0, 40, IDS[40:41], (0, 1, 2), 1),)))


def test_a_window_longer_than_any_context_is_none() -> None:
    loaded = made(Qwen3Config(**SHAPE, head_dim=16, sliding_window=2**32 + 64, use_sliding_window=True,
                              layer_types=["sliding_attention"] * 2))  # fmt: skip
    assert [layer.window for layer in compile_program(loaded, 16).layers] == [0, 0]


def test_memory_that_runs_out_in_a_step_is_one_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        own = cpu_forward(load("llama", torch.float32), 16, 1)
        assert own
    own.library = SimpleNamespace(streamproc_layers=lambda *_: 1, streamproc_disband=lambda _: None)
    with pytest.raises(StreamprocError, match=r"out of memory on cpu in a step of 200 tokens; lower engine"):
        prefill(own)


def test_a_program_that_computes_something_else_is_not_used(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = choice.compile_program

    def wrong(loaded: LoadedModel, block_size: int) -> Any:
        program = compiled(loaded, block_size)
        program.model.scaling *= 1.1
        return program

    monkeypatch.setattr(choice, "compile_program", wrong)
    forward, _ = choose_forward(load("llama", torch.float32), 16, 1)
    assert isinstance(forward, TorchForward)


def test_without_machine_code_torch_computes(config: Config, other_kind: Callable[[set[str]], None],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine(config)
    asked = (*engine.renderer.prefix_ids, 5, 6, 7)
    expected = stateless_answer(engine, asked, 8, ())
    engine.close()
    other_kind({"sse2"})
    if library_path() is not None:          # built for any processor
        monkeypatch.setattr(choice, "library", lambda: None)
    engine = build_engine(config)
    assert isinstance(engine.runner.forward, TorchForward)
    assert stateless_answer(engine, asked, 8, ()) == expected
    engine.close()


def test_weights_lie_in_memory_once(config: Config, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(engine.runner.forward, CpuForward)
    assert all(weight.is_meta for weight in engine.loaded.model.parameters())
    assert not any(buffer.is_meta for buffer in engine.loaded.model.buffers())
    monkeypatch.setattr(choice, "library", lambda: None)
    other = build_engine(config)
    assert not any(weight.is_meta for weight in other.loaded.model.parameters())
    asked = (*engine.renderer.prefix_ids, *range(5, 60))
    assert stateless_answer(engine, asked, 8, ()) == stateless_answer(other, asked, 8, ())
    assert engine.loaded.fingerprint == other.loaded.fingerprint
    other.close()


def test_every_kind_of_machine_code_that_runs_here_is_right_and_exact(load: Load,
                                                                      other_kind: Callable[[set[str]], None]) -> None:
    flags, tried = processor_flags(), []
    for kind, needed in KINDS.items():
        if not needed <= flags:
            continue
        other_kind(needed)
        path = library_path()
        if path is None or f"_{kind}." not in path.name:
            continue
        tried.append(kind)
        for dtype in (torch.float32, torch.bfloat16):
            forward, is_exact = choose_forward(load("qwen3", dtype), 16, 1)
            assert isinstance(forward, CpuForward)
            assert is_exact
            assert forward.facts[0] == libraries.library_fingerprint()
    assert tried


def test_rotary_tables_have_the_same_bits_however_they_grew(load: Load) -> None:
    loaded = load("gemma3", torch.float32)
    kinds = list(loaded.model.config.layer_types)
    layers = compile_program(loaded, 16).layers
    step_by_step, at_once = (Rotary(loaded.model.model.rotary_emb, kinds, None) for _ in range(2))
    with torch.inference_mode():
        for size in (1, POSITIONS + 1, 2 * POSITIONS + 7):
            step_by_step.grow(size, layers)
        at_once.grow(3 * POSITIONS, layers)
    for kind in kinds:
        ours, theirs = (torch.cat(rotary._tables[kind], 1)[:, :2 * POSITIONS + 7] for rotary in (step_by_step, at_once))
        assert torch.equal(ours, theirs)


def test_a_model_without_numbers_is_an_error(load: Load) -> None:
    loaded = load("llama", torch.float32)
    broken = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.inference_mode():
        own = cpu_forward(broken, 16, 1)
        assert own
        own.program.kept[0].fill_(float("nan"))
        with pytest.raises(StreamprocError, match=r"not finite in torch.float32; try engine.dtype"):
            prefill(own)
        assert not agrees(own, 16)


def test_many_query_heads_on_one_head_of_k_and_v(load: Load) -> None:
    """More than a task's rows of attention: a single row is a task still."""
    loaded = made(LlamaConfig(**{**SHAPE, "hidden_size": 512, "num_attention_heads": 32, "num_key_value_heads": 1}))
    with torch.inference_mode():
        own = cpu_forward(loaded, 16, 1)
    assert own
    kv = KVCache(loaded.layout(16), 4, loaded.device)
    found = [run_step(own, kv, Plan((), (Chunk(0, i, (IDS[i],), (0,), 1),)))[0] for i in range(3)]
    whole = run_step(own, kv, Plan((), (Chunk(1, 0, tuple(IDS[:3]), (1,), 1),)))[1]
    assert found[2] == whole
    assert torch.equal(own.cells(kv, (0,), 3), own.cells(kv, (1,), 3))
