"""A whole forward by Triton's kernels, in its interpreter: the same tokens and cells as by their references."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3Config

from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.program import compile_gpu_program
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import describe
from streamproc.kernels import ops, reference
from streamproc.schedule.plan import Chunk

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 90, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=24, layer_types=["sliding_attention", "full_attention"]),
}
SIZE, NUM_BLOCKS = 8, 30


def chunks(answer: int) -> list[list[Chunk]]:
    """A prefill in pieces, company, then a draft and a fork."""
    ids = tuple(i * 7 % 90 for i in range(90))
    table, other, fork = tuple(range(12)), (12, 13), (*range(9), 14, 15)
    return [
        [Chunk(0, 0, ids[:66], table), Chunk(1, 0, ids[:9], other, 1)],
        [Chunk(0, 66, ids[66:72], table, 1)],
        [Chunk(0, 72, (answer, 5), table, 2), Chunk(2, 72, ids[80:83], fork, 1)],
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_forward(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="streamproc").eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    loaded = describe(model, Path(), name)
    found, cells = [], []
    with torch.inference_mode():
        program = compile_gpu_program(loaded)
        for kernels in (ops, reference):
            forward = GpuForward(loaded, program, kernels)
            kv = KVCache(loaded.layout(SIZE), NUM_BLOCKS, loaded.device)
            answers: list[tuple[int, ...]] = [(0,)]
            for step in range(3):
                answers += forward.run(kv, chunks(answers[-1][0])[step], copies=((20, 21),)).values()
            found.append(answers)
            cells.append(kv.blocks.clone())
    assert found[0] == found[1]
    assert torch.allclose(*cells, atol=1e-4)
